# The process has one libstdc++, torch's: a copy inside the module breaks C++ streams. By its full name it is linked
# even where g++ would take libstdc++.a (its development link is missing, or flags say -static-libstdc++).
set(PROCESS_LIBSTDCXX -Wl,--no-as-needed -l:libstdc++.so.6 -Wl,--as-needed)
