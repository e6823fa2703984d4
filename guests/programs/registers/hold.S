// void hold_NAME(const struct image *in, struct image *out, u64 loops, u64 yield_address)
//
// Loads every register but rcx and rsp from `in`, writes to `yield_address`, counts `loops` down, and stores them all to
// `out`. Only instructions that leave the flags alone stand between the loading and the storing of them.
    .macro vectors load, move, kind, base
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    .if \load
    \move 128 + 32 * \n(%\base), %\kind\n
    .else
    \move %\kind\n, 128 + 32 * \n(%\base)
    .endif
    .endr
    .endm

    .macro general load, base
    .irp pair, "0,rax", "8,rbx", "16,rdx", "24,rsi", "40,rbp", "48,r8", "56,r9", "64,r10", "72,r11", "80,r12", "88,r13", "96,r14", "104,r15", "32,rdi"
    one_general \load, \base, \pair
    .endr
    .endm

    .macro one_general load, base, offset, register
    .if \load
    movq \offset(%\base), %\register
    .else
    movq %\register, \offset(%\base)
    .endif
    .endm

    .macro hold name, move, kind
    .globl \name
    .type \name, @function
\name:
    .irp register, rbx, rbp, r12, r13, r14, r15
    pushq %\register
    .endr
    pushq %rdx
    pushq %rsi
    // Load.
    fninit
    fldcw 124(%rdi)
    .irp offset, 640, 648, 656, 664, 672, 680, 688, 696
    fldl \offset(%rdi)
    .endr
    ldmxcsr 120(%rdi)
    vectors 1, \move, \kind, rdi
    pushq 112(%rdi)
    popfq
    general 1, rdi
    // Hold.
    movq %rax, (%rcx)
    movq 8(%rsp), %rcx
    jrcxz 2f
1:  loop 1b
2:  movq (%rsp), %rcx
    // Store.
    general 0, rcx
    pushfq
    popq 112(%rcx)
    cld
    vectors 0, \move, \kind, rcx
    stmxcsr 120(%rcx)
    fnstcw 124(%rcx)
    .irp offset, 696, 688, 680, 672, 664, 656, 648, 640
    fstpl \offset(%rcx)
    .endr
    // Put back what the C code relies on.
    fninit
    ldmxcsr usual_mxcsr(%rip)
    addq $16, %rsp
    .irp register, r15, r14, r13, r12, rbp, rbx
    popq %\register
    .endr
    ret
    .size \name, . - \name
    .endm

    .text
    hold hold_sse, movups, xmm
    hold hold_avx, vmovups, ymm

    .section .rodata
    .balign 4
usual_mxcsr:
    .long 0x1F80
    .section .note.GNU-stack, "", @progbits
