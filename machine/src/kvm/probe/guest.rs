//! The probe's guest: it says again and again what it finds.

use std::sync::Arc;
use std::time::Duration;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use samsara_commitlog::{Gpa, Shape, Space, VcpuIndex};

use crate::bare::{self, DEVICE_PAGE, Program, register};
use crate::kvm::{Host, KvmError, Privilege, RawExit, Restore, Vcpu, Vm};
use crate::memory::{Image, MemoryError, PageIndex, View};
use crate::vcpu::VcpuState;

const MEMORY_BYTES: u64 = 16 << 20;
/// Far more than the few instructions of a turn take.
const TURN_LIMIT: Duration = Duration::from_secs(2);

/// Where the guest finds a value through a page table whose last entry changes, and through one whose last entry but
/// one does. Both are above what the loader maps.
const NEAR: u64 = 1 << 39;
const FAR: u64 = NEAR + (2 << 20);
/// The probe's tables, from the entry of the root that covers [`NEAR`] down, and pages of values.
const POINTERS: u64 = 0x40_0000;
const DIRECTORY: u64 = 0x40_1000;
const NEAR_TABLE: u64 = 0x40_2000;
const FAR_TABLE: u64 = 0x40_3000;
const FAR_TABLE_THEN: u64 = 0x40_4000;
const FIRST_VALUE: u64 = 0x40_5000;
const OTHER_VALUE: u64 = 0x40_6000;
/// Where the guest counts its turns.
const TURNS: u64 = 0x40_7000;
/// Present, writable, user, accessed; and dirty: the processor never has to write to these tables.
const TABLE: u64 = 0x27;
const LEAF: u64 = 0x67;
const CR4_PGE: u64 = 1 << 7;

const VALUE: u64 = 0x1111;
const VALUE_THEN: u64 = 0x2222;
/// What the guest finds through the tables as they are first, and once they are changed.
pub(super) const MAPPED_FIRST: (u64, u64) = (VALUE, VALUE);
pub(super) const MAPPED_THEN: (u64, u64) = (VALUE_THEN, VALUE_THEN);

const TSC: u32 = 0x10;
/// Where the guest's TSC is set to: half a thousand years after any boot, at 4 GHz.
pub(super) const TSC_START: u64 = 1 << 61;
/// A probe takes far less than this.
pub(super) const TSC_TOLERANCE: u64 = 1 << 45;
/// The leaf with the processor's signature and most features, and what the probe's differs in: in the stepping, and by
/// features that it has not and every processor has (SSE3, SSSE3, SSE4.1, SSE4.2). Some hosts mask one and not the other.
const PROCESSOR_LEAF: u32 = 1;
const OTHER_STEPPING: u32 = 0xf;
const MISSING_FEATURES: u32 = 1 | 1 << 9 | 1 << 19 | 1 << 20;

/// What the guest finds in a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) is_its_processor: bool,
    pub(super) tsc: u64,
    pub(super) near: u64,
    pub(super) far: u64,
    pub(super) turns: u64,
}

/// A machine with one vCPU on a private view, as a recorder has them.
#[derive(Debug)]
pub(super) struct Probe {
    vcpu: Vcpu,
    vm: Vm,
    view: View,
    image: Arc<Image>,
    /// What CPUID should tell the guest of its processor.
    signature: u64,
}

impl Probe {
    pub(super) fn start(host: &Host) -> Result<Self, KvmError> {
        let shape = Shape {
            vcpu_count: 1,
            memory_bytes: MEMORY_BYTES,
        };
        let image = Arc::new(Image::new(shape).map_err(|error| no_memory(&error))?);
        let program = Program::flat(code());
        let mut states = bare::boot(host, &image, 1, &program, "")
            .map_err(|error| KvmError::Probe(error.to_string()))?;
        let state = &mut states[0];
        write_tables(&image, state.sregs().cr3).map_err(|error| no_memory(&error))?;
        state.set_msr(TSC, TSC_START);
        let view = View::new(&image).map_err(|error| no_memory(&error))?;
        let vm = Vm::on_view(host, &view)?;
        let mut vcpu = vm.vcpu(host, VcpuIndex(0), Privilege::Kernel)?;
        let signature = set_processor(host, &vcpu)?;
        vcpu.attach()?;
        vcpu.restore(state, Restore::Whole)?;
        Ok(Self {
            vcpu,
            vm,
            view,
            image,
            signature,
        })
    }

    /// Lets the guest look at everything once.
    pub(super) fn turn(&mut self) -> Result<Finding, KvmError> {
        Ok(Finding {
            is_its_processor: self.finds_its_processor()?,
            tsc: self.next_word()?,
            near: self.next_word()?,
            far: self.next_word()?,
            turns: self.next_word()?,
        })
    }

    fn finds_its_processor(&mut self) -> Result<bool, KvmError> {
        let signature = self.next_word()?;
        let features = self.next_word()?;
        Ok(signature == self.signature && features & u64::from(MISSING_FEATURES) == 0)
    }

    fn next_word(&mut self) -> Result<u64, KvmError> {
        match self.vcpu.run(Some(TURN_LIMIT))? {
            RawExit::Write {
                space: Space::Mmio,
                value,
                ..
            } => Ok(value),
            other => Err(KvmError::Probe(format!("its guest stops with {other:?}"))),
        }
    }

    /// Changes the tables as a commit of another vCPU would: in the image; the view drops its pages, and the vCPU's
    /// translations are flushed.
    pub(super) fn change_tables(&mut self) -> Result<(), KvmError> {
        self.set_tables(OTHER_VALUE | LEAF, FAR_TABLE_THEN | TABLE)
    }

    /// Changes them back.
    #[cfg(test)]
    pub(super) fn restore_tables(&mut self) -> Result<(), KvmError> {
        self.set_tables(FIRST_VALUE | LEAF, FAR_TABLE | TABLE)
    }

    fn set_tables(&mut self, near: u64, far: u64) -> Result<(), KvmError> {
        for (address, entry) in [(NEAR_TABLE, near), (DIRECTORY + 8, far)] {
            let result = self.image.write(Gpa(address), &entry.to_le_bytes());
            result.map_err(|error| no_memory(&error))?;
        }
        let pages = [DIRECTORY, NEAR_TABLE].map(|address| self.page_of(address));
        let pages: Vec<PageIndex> = pages.into_iter().flatten().collect();
        self.view
            .drop_pages(&pages)
            .map_err(|error| no_memory(&error))?;
        self.flush_translations()
    }

    /// Setting a CR4 with another PGE makes KVM drop what it knows of the old one.
    fn flush_translations(&mut self) -> Result<(), KvmError> {
        let mut state = VcpuState::zeroed(self.vcpu.msr_indices());
        self.vcpu.capture(&mut state)?;
        let sregs = state.sregs();
        let mut other = sregs;
        other.cr4 ^= CR4_PGE;
        for sregs in [other, sregs] {
            state.set_sregs(&sregs);
            self.vcpu.restore(&state, Restore::KeepTime)?;
        }
        Ok(())
    }

    fn page_of(&self, address: u64) -> Option<PageIndex> {
        self.view.layout().page_of(Gpa(address))
    }

    pub(super) fn rebuild_slots(&self) -> Result<(), KvmError> {
        self.vm.rebuild_slots()
    }

    /// Whether the page in which the guest counts was reported as written since the last call.
    #[cfg(test)]
    pub(super) fn reports_writes(&mut self) -> Result<bool, KvmError> {
        let counted = self.page_of(TURNS);
        let mut found = false;
        self.vcpu
            .take_written(|page| found |= Some(page) == counted)?;
        Ok(found)
    }
}

/// Gives the vCPU a processor that this host's is not. Gives its signature.
fn set_processor(host: &Host, vcpu: &Vcpu) -> Result<u64, KvmError> {
    let native = std::arch::x86_64::__cpuid(PROCESSOR_LEAF).eax;
    let signature = native ^ OTHER_STEPPING;
    let mut leaves = host.cpu.for_vcpu(VcpuIndex(0), None);
    let is_processor = |leaf: &&mut kvm_cpuid_entry2| leaf.function == PROCESSOR_LEAF;
    for leaf in leaves.iter_mut().filter(is_processor) {
        leaf.eax = signature;
        leaf.ecx &= !MISSING_FEATURES;
    }
    let leaves = CpuId::from_entries(&leaves)
        .map_err(|_| KvmError::Missing("room for the processor's leaves"))?;
    vcpu.fd
        .set_cpuid2(&leaves)
        .map_err(KvmError::request("KVM_SET_CPUID2"))?;
    Ok(signature.into())
}

fn write_tables(image: &Image, root: u64) -> Result<(), MemoryError> {
    let root_entry = root + NEAR / (1 << 39) * 8;
    for (address, word) in [
        (root_entry, POINTERS | TABLE),
        (POINTERS, DIRECTORY | TABLE),
        (DIRECTORY, NEAR_TABLE | TABLE),
        (DIRECTORY + 8, FAR_TABLE | TABLE),
        (NEAR_TABLE, FIRST_VALUE | LEAF),
        (FAR_TABLE, FIRST_VALUE | LEAF),
        (FAR_TABLE_THEN, OTHER_VALUE | LEAF),
        (FIRST_VALUE, VALUE),
        (OTHER_VALUE, VALUE_THEN),
    ] {
        image.write(Gpa(address), &word.to_le_bytes())?;
    }
    Ok(())
}

/// The guest's program: it says what it finds at a device register, word by word.
fn code() -> Vec<u8> {
    let mut say = vec![0xbf]; // mov edi, YIELD
    say.extend(((DEVICE_PAGE + register::YIELD) as u32).to_le_bytes());
    say.extend([0x48, 0x89, 0x07]); // mov [rdi], rax
    let load = |address: u64| {
        let mut load = vec![0x48, 0xbe]; // mov rsi, address
        load.extend(address.to_le_bytes());
        load.extend([0x48, 0x8b, 0x06]); // mov rax, [rsi]
        load
    };
    let mut code = vec![0xb8]; // mov eax, PROCESSOR_LEAF
    code.extend(PROCESSOR_LEAF.to_le_bytes());
    code.extend([0x0f, 0xa2]); // cpuid
    code.extend(&say);
    code.extend([0x89, 0xc8]); // mov eax, ecx
    code.extend(&say);
    code.extend([0x0f, 0x31, 0x48, 0xc1, 0xe2, 32, 0x48, 0x09, 0xd0]); // rdtsc; shl rdx, 32; or rax, rdx
    code.extend(&say);
    code.extend(load(NEAR));
    code.extend(&say);
    code.extend(load(FAR));
    code.extend(&say);
    code.extend(load(TURNS));
    code.extend([0x48, 0xff, 0xc0, 0x48, 0x89, 0x06]); // inc rax; mov [rsi], rax
    code.extend(&say);
    code.push(0xe9); // jmp to the start
    let back = -(code.len() as i32 + 4);
    code.extend(back.to_le_bytes());
    code
}

fn no_memory(error: &MemoryError) -> KvmError {
    KvmError::Probe(error.to_string())
}
