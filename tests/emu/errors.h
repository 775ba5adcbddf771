// errors.h -- how the emulator says what a kernel does wrong, and in which line.
#pragma once
#include <cstring>
#include <stdexcept>
#include <string>

namespace emu {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn, gnu::cold]] inline void fail(const std::string& what) { throw Error("emulator: " + what); }

struct Where {
  const char* file = "";
  int line = 0;
  bool operator==(const Where& other) const {
    return line == other.line && (file == other.file || std::strcmp(file, other.file) == 0);
  }
};
inline std::string text(const Where& where) { return std::string(where.file) + ":" + std::to_string(where.line); }

}  // namespace emu

// Last parameters of a function that wants to know the line it is called from.
#define EMU_WHERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
