// rdi, rsi, rdx, rcx are already the arguments of guest_start(index, count, params, memory); rsp is aligned.
    .section .text.entry, "ax", @progbits
    .globl _start
    .type _start, @function
_start:
    cld
    xorl %ebp, %ebp
    call guest_start
    ud2
    .size _start, . - _start
    .section .note.GNU-stack, "", @progbits
