// How the kernel is entered: at boot, on the other vCPU, and by traps.

    .section .text.entry, "ax"
    .globl _start
_start:
    mov $kernel_stacks + 0x1000, %rsp
    mov %rsi, %rdi
    call start_first
    ud2

    .text
other_entry:
    mov $0x18, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $kernel_stacks + 0x2000, %rsp
    call start_other
    ud2

// The other vCPU begins here, copied to 0x8000, in real mode; its data segments begin at 0.
    .globl trampoline, trampoline_end
    .code16
trampoline:
    cli
    lgdtl 0x8000 + (trampoline_gdt - trampoline)
    mov $0x20, %eax             // PAE
    mov %eax, %cr4
    mov $root, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx       // EFER: LME
    mov $0x100, %eax
    xor %edx, %edx
    wrmsr
    mov $0x80010011, %eax       // PG, WP, ET, PE
    mov %eax, %cr0
    ljmpl $0x10, $other_entry
trampoline_gdt:
    .word 12 * 8 - 1
    .long gdt
trampoline_end:
    .code64

// enter_user(code, stack)
    .globl enter_user
enter_user:
    pushq $0x2b
    pushq %rsi
    pushq $0x202                // interrupts on
    pushq $0x33
    pushq %rdi
    iretq

    .macro stub vector, has_error
stub_\vector:
    .if !\has_error
    pushq $0
    .endif
    pushq $\vector
    jmp trap_entry
    .endm

    .set vector, 0
    .altmacro
    .rept 32
    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17
    stub %vector, 1
    .else
    stub %vector, 0
    .endif
    .set vector, vector + 1
    .endr
    stub 64, 0

trap_entry:
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rbx
    pushq %rbp
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    mov %rsp, %rdi
    call trap
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rbp
    popq %rbx
    popq %rdx
    popq %rcx
    popq %rax
    add $16, %rsp
    iretq

    .macro address vector
    .quad stub_\vector
    .endm
    .section .rodata
    .balign 8
    .globl exception_stubs, shootdown_stub
exception_stubs:
    .set vector, 0
    .rept 32
    address %vector
    .set vector, vector + 1
    .endr
shootdown_stub:
    .quad stub_64
    .section .note.GNU-stack, "", @progbits
