#include "feed.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

using nlohmann::json;

namespace {

// A size is a number, or a named dimension with bounds, which has one value throughout the feed.
bool fits(const json& size, std::int64_t found, std::map<std::string, std::int64_t>& named) {
    if (size.is_number()) return found == size.get<std::int64_t>();
    const bool same = named.emplace(size.at("name"), found).first->second == found;
    return same && found >= size.at("min").get<std::int64_t>() && found <= size.at("max").get<std::int64_t>();
}

}  // namespace

void check_feed(const json& inputs, const Arrays& feed) {
    std::map<std::string, std::int64_t> named;
    for (const json& spec : inputs) {
        const std::string name = spec.at("name");
        const auto found = feed.find(name);
        if (found == feed.end()) throw std::runtime_error("the feed lacks input " + name);
        const Array& array = found->second;
        if (array.dtype != spec.at("dtype"))
            throw std::runtime_error("input " + name + " is " + array.dtype + ", not " + spec.at("dtype").dump());
        bool good = array.shape.size() == spec.at("shape").size();
        for (std::size_t axis = 0; good && axis < array.shape.size(); ++axis)
            good = fits(spec.at("shape")[axis], array.shape[axis], named);
        if (!good) throw std::runtime_error("input " + name + " has another shape than " + spec.at("shape").dump());
        for (std::size_t index = 0; array.dtype[0] == 'f' && index < array.size(); ++index)
            if (!std::isfinite(array.at(index))) throw std::runtime_error("input " + name + " holds NaN or infinity");
        if (!spec.contains("values")) continue;     // it indexes a table, whose end OpenVINO does not check
        const double least = spec.at("values")[0], most = spec.at("values")[1];
        for (std::size_t index = 0; index < array.size(); ++index)
            if (array.at(index) < least || array.at(index) > most)
                throw std::runtime_error("input " + name + " has a value outside " + spec.at("values").dump());
    }
    if (feed.size() != inputs.size()) throw std::runtime_error("the feed has an input that the engine has not");
}

double largest_difference(const Arrays& outputs, const Arrays& expected) {
    double largest = 0;
    for (const auto& [name, output] : outputs) {
        const auto found = expected.find(name);
        if (found == expected.end() || found->second.shape != output.shape)
            return std::numeric_limits<double>::infinity();
        for (std::size_t index = 0; index < output.size(); ++index) {
            const double difference = std::abs(output.at(index) - found->second.at(index));
            if (std::isnan(difference)) return std::numeric_limits<double>::infinity();
            largest = std::max(largest, difference);
        }
    }
    return largest;
}
