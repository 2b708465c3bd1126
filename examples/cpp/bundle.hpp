// A bundle: the manifest, and files of which every byte handed out has been checked against it. See docs/bundle.md.
#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "arrays.hpp"

// An engine as a session takes it: its record, and the bytes of its files by their path relative to its folder.
struct Engine {
    nlohmann::json record;
    std::map<std::string, Bytes> files;
};

class Bundle {
public:
    // Reads the manifest; with a key (an Ed25519 public key as a PEM file) only if that key has signed it.
    explicit Bundle(std::filesystem::path folder, const std::optional<std::filesystem::path>& key = std::nullopt);

    std::string name() const { return manifest_.at("name"); }

    // The graph of this name; without a name the only one.
    const nlohmann::json& graph(const std::optional<std::string>& name) const;

    // The bytes of a file, which are those the manifest lists: size and SHA-256 are checked after reading.
    Bytes read(const std::string& name) const;

    // The engine of a graph for a target, every file of it read and checked.
    Engine engine(const nlohmann::json& graph, const std::string& target) const;

private:
    std::filesystem::path folder_;
    nlohmann::json manifest_;
};
