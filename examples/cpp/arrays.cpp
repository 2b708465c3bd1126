#include "arrays.hpp"

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <regex>
#include <stdexcept>

namespace {

const std::map<std::string, std::pair<std::string, std::size_t>> kDtypes = {  // in the file -> numpy's name, bytes
    {"|b1", {"bool", 1}},    {"|i1", {"int8", 1}},    {"|u1", {"uint8", 1}},   {"<i2", {"int16", 2}},
    {"<u2", {"uint16", 2}},  {"<i4", {"int32", 4}},   {"<u4", {"uint32", 4}},  {"<i8", {"int64", 8}},
    {"<u8", {"uint64", 8}},  {"<f2", {"float16", 2}}, {"<f4", {"float32", 4}}, {"<f8", {"float64", 8}},
};

template <typename T>
T read(const Bytes& file, std::size_t at) {
    if (at > file.size() || file.size() - at < sizeof(T)) throw std::runtime_error("it ends too early");
    T value;
    std::memcpy(&value, file.data() + at, sizeof(T));
    return value;
}

Array parse_npy(const Bytes& file, std::size_t start, std::size_t size) {
    if (size < 12 || std::memcmp(file.data() + start, "\x93NUMPY", 6) != 0) throw std::runtime_error("no .npy in it");
    const bool first = file[start + 6] == 1;
    const std::size_t before = first ? 10 : 12;
    const std::size_t length = first ? read<std::uint16_t>(file, start + 8) : read<std::uint32_t>(file, start + 8);
    if (length > size - before) throw std::runtime_error("a header ends too early");
    const auto* text = reinterpret_cast<const char*>(file.data() + start + before);
    const std::string header(text, length);

    static const std::regex form(
        R"re(\{'descr': '([<|][a-z]\d)', 'fortran_order': False, 'shape': \(([\d, ]*)\), \}\s*)re");
    std::smatch found;
    if (!std::regex_match(header, found, form) || !kDtypes.count(found[1]))
        throw std::runtime_error("an array is not row-major, not little-endian, or not of plain numbers: " + header);
    const auto& [dtype, bytes] = kDtypes.at(found[1]);

    Array array{dtype, {}, {}};
    std::size_t count = 1;
    static const std::regex digits(R"(\d{1,18})");
    const std::string shape = found[2];
    for (std::sregex_iterator at(shape.begin(), shape.end(), digits), end; at != end; ++at) {
        const std::uint64_t side = std::stoull(at->str());
        if (side && count > size / side) throw std::runtime_error("an array is longer than the file");
        array.shape.push_back(static_cast<std::int64_t>(side));
        count *= side;
    }
    if (count * bytes != size - before - length) throw std::runtime_error("an array is not as long as its shape says");
    array.data.assign(file.begin() + start + before + length, file.begin() + start + size);
    return array;
}

// A zip archive whose members are stored as they are, read by its central directory (PKWARE's APPNOTE.TXT, 4.3).
Arrays parse_zip(const Bytes& file) {
    constexpr std::size_t kEndSize = 22;
    if (file.size() < kEndSize || read<std::uint32_t>(file, file.size() - kEndSize) != 0x06054b50)
        throw std::runtime_error("it is no zip archive, or has a comment");
    const std::size_t count = read<std::uint16_t>(file, file.size() - kEndSize + 10);
    std::size_t at = read<std::uint32_t>(file, file.size() - kEndSize + 16);

    Arrays arrays;
    for (std::size_t entry = 0; entry < count; ++entry) {
        if (read<std::uint32_t>(file, at) != 0x02014b50) throw std::runtime_error("its directory is damaged");
        const auto method = read<std::uint16_t>(file, at + 10);
        const std::size_t size = read<std::uint32_t>(file, at + 24), offset = read<std::uint32_t>(file, at + 42);
        const std::size_t name_size = read<std::uint16_t>(file, at + 28);
        if (method != 0 || size == 0xffffffff || offset == 0xffffffff)
            throw std::runtime_error("a member is compressed, or of more than 4 GiB: write it with numpy.savez");
        if (at + 46 + name_size > file.size()) throw std::runtime_error("it ends too early");
        std::string name(reinterpret_cast<const char*>(file.data() + at + 46), name_size);
        at += 46 + name_size + read<std::uint16_t>(file, at + 30) + read<std::uint16_t>(file, at + 32);

        const std::size_t skipped = read<std::uint16_t>(file, offset + 26) + read<std::uint16_t>(file, offset + 28);
        const std::size_t data = offset + 30 + skipped;
        if (data > file.size() || file.size() - data < size) throw std::runtime_error("it ends too early");
        if (name.size() > 4 && name.compare(name.size() - 4, 4, ".npy") == 0) name.resize(name.size() - 4);
        arrays[name] = parse_npy(file, data, size);
    }
    return arrays;
}

float half_to_float(std::uint16_t half) {
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    float value = std::ldexp(static_cast<float>(fraction + (exponent ? 1024 : 0)), (exponent ? exponent : 1) - 25);
    if (exponent == 31) value = fraction ? std::nanf("") : std::numeric_limits<float>::infinity();
    return half >> 15 ? -value : value;
}

}  // namespace

std::size_t Array::size() const {
    return std::accumulate(shape.begin(), shape.end(), std::size_t{1}, std::multiplies<>());
}

double Array::at(std::size_t index) const {
    const std::size_t place = index * item_size(dtype);
    if (dtype == "float32") return read<float>(data, place);
    if (dtype == "float64") return read<double>(data, place);
    if (dtype == "float16") return half_to_float(read<std::uint16_t>(data, place));
    if (dtype == "int8") return read<std::int8_t>(data, place);
    if (dtype == "int16") return read<std::int16_t>(data, place);
    if (dtype == "uint16") return read<std::uint16_t>(data, place);
    if (dtype == "int32") return read<std::int32_t>(data, place);
    if (dtype == "uint32") return read<std::uint32_t>(data, place);
    if (dtype == "int64") return static_cast<double>(read<std::int64_t>(data, place));
    if (dtype == "uint64") return static_cast<double>(read<std::uint64_t>(data, place));
    return read<std::uint8_t>(data, place);  // bool and uint8
}

std::size_t item_size(const std::string& dtype) {
    for (const auto& [descr, known] : kDtypes)
        if (known.first == dtype) return known.second;
    throw std::runtime_error("dtype " + dtype + " is not one this app knows");
}

Arrays parse_npz(const Bytes& file, const std::string& where) {
    try {
        return parse_zip(file);
    } catch (const std::exception& error) {
        throw std::runtime_error(where + " cannot be read as an .npz file: " + error.what());
    }
}
