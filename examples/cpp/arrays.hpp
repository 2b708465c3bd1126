// Named arrays, and the .npz files they are kept in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

using Bytes = std::vector<std::uint8_t>;

struct Array {
    std::string dtype;                  // numpy's name: "float32", "int64"
    std::vector<std::int64_t> shape;
    Bytes data;                         // row-major, little-endian

    std::size_t size() const;           // how many numbers
    double at(std::size_t index) const;
};

using Arrays = std::map<std::string, Array>;

// Bytes of one number of this dtype. Throws where it is not one that an engine takes.
std::size_t item_size(const std::string& dtype);

// The arrays of an .npz file as numpy.savez and compress write it: not compressed, no Python objects. `where` names it.
Arrays parse_npz(const Bytes& file, const std::string& where);
