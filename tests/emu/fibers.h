// fibers.h -- fibers: stacks of their own, which one OS thread runs in turns.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <memory>
#include <new>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef __x86_64__
#error "fibers.h switches stacks in x86-64 assembly"
#endif

namespace emu {

// Where a stack was left. The last three are AddressSanitizer's, which must know which stack is in use.
struct Context {
  void* stack_pointer = nullptr;
  const void* bottom = nullptr;
  size_t bytes = 0;
  void* fake_stack = nullptr;
};

// Saves the registers that a function must preserve, leaves one stack and goes on where another was left.
// swapcontext() would do too, at two system calls a switch. The jump is a return whose target the processor does not
// take to be where this was called from.
__attribute__((naked, noipa, no_profile_instrument_function)) inline void switch_stack(void** /*from: in rdi*/,
                                                                                       void* /*to: in rsi*/) {
  asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n\t"
      "movq %rsp, (%rdi); movq %rsi, %rsp\n\t"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp\n\t"
      "popq %rcx; jmp *%rcx");
}

inline void arrive([[maybe_unused]] Context& here, [[maybe_unused]] Context& from) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(here.fake_stack, &from.bottom, &from.bytes);
#endif
}

inline void switch_context(Context& here, Context& there) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&here.fake_stack, there.bottom, there.bytes);
#endif
  switch_stack(&here.stack_pointer, there.stack_pointer);
  arrive(here, there);
}

// One at a time runs, called by whoever called resume(): the scheduler.
class Fiber {
 public:
  Fiber(const Fiber&) = delete;  // nor moved: what waits on its stack refers to it
  // The fiber will run entry(), which must not return. `number` tells the fibers apart.
  Fiber(void (*entry)(), size_t number) : entry_(entry), number_(number), stack_(map_stack()) { restart(); }

  // Back to the start of entry(), whatever the fiber was in the middle of; no destructor runs on its stack.
  void restart() {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(stack_.get() + kGuardBytes, kStackBytes - kGuardBytes);
#endif
    // Were all stacks to begin at the same place in a page, they would fight for the same cache lines.
    void** top = reinterpret_cast<void**>(stack_.get() + kStackBytes - number_ % 64 * 320);
    *--top = nullptr;  // as a call leaves it: aligned to 16 bytes before the return address
    *--top = reinterpret_cast<void*>(&begin);
    top -= kSavedRegisters;
    context_ = {top, stack_.get(), kStackBytes, nullptr};
  }

  // Runs the fiber until it suspends.
  void resume() {
    current_ = this;
    switch_context(scheduler_, context_);
  }
  // Called on a fiber: returns when the fiber is resumed.
  static void suspend() { switch_context(current_->context_, scheduler_); }

 private:
  static constexpr size_t kStackBytes = 256 << 10, kGuardBytes = 4096;  // an error report takes much of a stack
  static constexpr int kSavedRegisters = 6;

  struct Unmap {
    void operator()(char* stack) const { munmap(stack, kStackBytes); }
  };
  using Stack = std::unique_ptr<char, Unmap>;

  // Memory that takes no more than what is touched of it, with a page below that nobody may touch.
  static Stack map_stack() {
    void* stack =
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) throw std::bad_alloc();
    mprotect(stack, kGuardBytes, PROT_NONE);
    return Stack(static_cast<char*>(stack));
  }

  static void begin() {
    arrive(current_->context_, scheduler_);
    current_->entry_();
  }

  inline static Fiber* current_ = nullptr;
  inline static Context scheduler_;

  void (*entry_)();
  size_t number_;
  Stack stack_;
  Context context_;
};

}  // namespace emu
