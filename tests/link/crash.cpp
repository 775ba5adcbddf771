#include <cstdlib>

// What is not right may not even load.
static const bool crashed = (std::abort(), true);
