// How the kernel is entered: at boot, on the other vCPU, and by traps. All is at CPL 0, on the loader's page tables.

    .section .text.entry, "ax"
    .globl _start
_start:
    mov $kernel_stacks + 0x4000, %rsp
    mov %rsi, %rdi
    call start_first
    ud2

    .text
other_entry:
    mov $0x18, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $kernel_stacks + 0x8000, %rsp
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
    mov $0x9000, %eax           // the loader's
    mov %eax, %cr3
    mov $0xc0000080, %ecx       // EFER: LME
    mov $0x100, %eax
    xor %edx, %edx
    wrmsr
    mov $0x80010011, %eax       // PG, WP, ET, PE
    mov %eax, %cr0
    ljmpl $0x10, $other_entry
trampoline_gdt:
    .word 4 * 8 - 1
    .long gdt
trampoline_end:
    .code64

// What may fault. A trap from within goes on at `refused`.
    .globl try_begin, try_end, refused, try_read_msr, try_write_msr, try_load
try_begin:
try_read_msr:
    mov %edi, %ecx
    rdmsr
    shl $32, %rdx
    or %rdx, %rax
    mov %rax, (%rsi)
    xor %eax, %eax
    ret
try_write_msr:
    mov %edi, %ecx
    mov %esi, %eax
    mov %rsi, %rdx
    shr $32, %rdx
    wrmsr
    xor %eax, %eax
    ret
try_load:
    mov (%rdi), %rax
    mov %rax, (%rsi)
    xor %eax, %eax
    ret
try_end:
refused:
    mov $1, %eax
    ret

// Exceptions have vectors below 32, and of those that can happen here 8 and 10 to 14 push an error code.
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
    .rept 256
    .if vector == 8 || (vector >= 10 && vector <= 14)
    stub %vector, 1
    .else
    stub %vector, 0
    .endif
    .set vector, vector + 1
    .endr

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
    .globl stubs
stubs:
    .set vector, 0
    .rept 256
    address %vector
    .set vector, vector + 1
    .endr
    .section .note.GNU-stack, "", @progbits
