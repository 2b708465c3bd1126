// A feed against what the engine's record says of its inputs, and outputs against those expected.
#pragma once

#include <nlohmann/json.hpp>

#include "arrays.hpp"

// Throws at the first input that is missing, unknown, of another dtype or rank, or of a size the engine does not take.
void check_feed(const nlohmann::json& inputs, const Arrays& feed);

// The largest absolute difference; infinite where a name or a shape differs, or a number is NaN.
double largest_difference(const Arrays& outputs, const Arrays& expected);
