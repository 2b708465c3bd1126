#include "bundle.hpp"

#include <openssl/evp.h>
#include <openssl/pem.h>

#include <cstdio>
#include <fstream>
#include <memory>
#include <regex>
#include <stdexcept>

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

const std::string kFormat = "compress.bundle", kEngineFormat = "compress.engine";
constexpr int kVersion = 2, kEngineVersion = 1;
constexpr char kSigned[] = "compress.bundle manifest";  // its final zero byte is signed too

Bytes read_file(const fs::path& path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file || !fs::is_regular_file(path)) throw std::runtime_error(path.string() + " cannot be read");
    Bytes bytes(static_cast<std::size_t>(file.tellg()));
    file.seekg(0);
    if (!file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size())))
        throw std::runtime_error(path.string() + " cannot be read to its end");
    return bytes;
}

std::string to_hex(const std::uint8_t* bytes, std::size_t size) {
    std::string text;
    for (std::size_t index = 0; index < size; ++index) {
        char digits[3];
        std::snprintf(digits, sizeof digits, "%02x", bytes[index]);
        text += digits;
    }
    return text;
}

std::string sha256(const Bytes& bytes) {
    std::uint8_t digest[32];
    if (EVP_Digest(bytes.data(), bytes.size(), digest, nullptr, EVP_sha256(), nullptr) != 1)
        throw std::runtime_error("OpenSSL cannot compute SHA-256");
    return to_hex(digest, sizeof digest);
}

// Throws unless manifest.sig is the signature of the manifest by the key in this PEM file.
void check_signature(const Bytes& manifest, const fs::path& signature_path, const fs::path& key_path) {
    const Bytes pem = read_file(key_path), line = read_file(signature_path);
    std::unique_ptr<BIO, decltype(&BIO_free)> text(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), BIO_free);
    std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key(PEM_read_bio_PUBKEY(text.get(), nullptr, nullptr, nullptr),
                                                            EVP_PKEY_free);
    std::uint8_t raw[32];
    std::size_t raw_size = sizeof raw;
    if (!key || EVP_PKEY_id(key.get()) != EVP_PKEY_ED25519 ||
        EVP_PKEY_get_raw_public_key(key.get(), raw, &raw_size) != 1)
        throw std::runtime_error(key_path.string() + " is not an Ed25519 public key");

    static const std::regex form("compress\\.signature 1 ed25519 ([0-9a-f]{64}) ([0-9a-f]{128})\n");
    std::smatch found;
    const std::string content(line.begin(), line.end());
    if (!std::regex_match(content, found, form))
        throw std::runtime_error(signature_path.string() + " is not a signature file of version 1");
    if (found[1] != to_hex(raw, raw_size))
        throw std::runtime_error(signature_path.string() + " is a signature of another key than the one trusted here");
    Bytes signature;
    for (std::size_t index = 0; index < 64; ++index)
        signature.push_back(static_cast<std::uint8_t>(std::stoi(found[2].str().substr(2 * index, 2), nullptr, 16)));
    Bytes message(kSigned, kSigned + sizeof kSigned);
    message.insert(message.end(), manifest.begin(), manifest.end());
    std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
    if (EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, key.get()) != 1 ||
        EVP_DigestVerify(context.get(), signature.data(), signature.size(), message.data(), message.size()) != 1)
        throw std::runtime_error(signature_path.string() + " is not a signature of this manifest: do not use it");
}

json parse_record(const Bytes& bytes, const std::string& format, int version, const std::string& where) {
    json record = json::parse(bytes.begin(), bytes.end(), nullptr, false);
    if (!record.is_object() || record.value("format", "") != format || record.value("version", 0) != version)
        throw std::runtime_error(where + " is not a " + format + " of version " + std::to_string(version));
    return record;
}

}  // namespace

Bundle::Bundle(fs::path folder, const std::optional<fs::path>& key) : folder_(std::move(folder)) {
    const fs::path path = folder_ / "manifest.json";
    const Bytes bytes = read_file(path);  // read once: what is parsed is what was signed
    if (key) check_signature(bytes, folder_ / "manifest.sig", *key);
    manifest_ = parse_record(bytes, kFormat, kVersion, path.string());
}

const json& Bundle::graph(const std::optional<std::string>& name) const {
    const json& graphs = manifest_.at("graphs");
    if (!name && graphs.size() == 1) return graphs.begin().value();
    if (name && graphs.contains(*name)) return graphs.at(*name);
    std::string known;
    for (const auto& item : graphs.items()) known += " " + item.key();
    throw std::runtime_error("name one of the bundle's graphs:" + known);
}

Bytes Bundle::read(const std::string& name) const {
    const json& files = manifest_.at("files");
    const fs::path relative(name);
    if (!files.contains(name)) throw std::runtime_error(name + " is not one of the bundle's files");
    for (const auto& part : relative)
        if (relative.is_absolute() || part == "..") throw std::runtime_error(name + " is a path out of the bundle");
    Bytes bytes = read_file(folder_ / relative);
    if (bytes.size() != files.at(name).at("size") || sha256(bytes) != files.at(name).at("sha256"))
        throw std::runtime_error((folder_ / relative).string() + " is not the file that the manifest lists");
    return bytes;
}

Engine Bundle::engine(const json& graph, const std::string& target) const {
    const json& engines = graph.at("engines");
    if (!engines.contains(target)) {
        std::string known;
        for (const auto& item : engines.items()) known += " " + item.key();
        throw std::runtime_error("the bundle has no engine for " + target + ", it has:" + known);
    }
    const std::string prefix = engines.at(target).at("path").get<std::string>() + "/";
    Engine engine;
    for (const auto& item : manifest_.at("files").items())
        if (item.key().compare(0, prefix.size(), prefix) == 0)
            engine.files[item.key().substr(prefix.size())] = read(item.key());
    engine.record = parse_record(engine.files["engine.json"], kEngineFormat, kEngineVersion, prefix + "engine.json");
    if (engine.record.at("state") == "build on the device")
        throw std::runtime_error("the engine for " + target + " is built on the device, by compress");
    return engine;
}
