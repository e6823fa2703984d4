//! What the loader puts into guest memory around the program: descriptor tables, exception stubs,
//! page tables, stacks.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use kvm_bindings::kvm_debugregs;
use samsara_commitlog::{Gpa, PAGE_BYTES, Shape, VcpuIndex};

use super::boot::is_confined;
use super::devices::DEVICE_PAGE;
use crate::kvm::{Stepper, Stepping};
use crate::memory::{HOLE_END, HOLE_START, Image, Layout, MemoryError, PageIndex, View};
use crate::vcpu::VcpuState;

/// Port that the exception stubs write their vector to. No code at CPL 3 can reach it.
pub(super) const EXCEPTION_PORT: u16 = 0x5a;

const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const STUBS: u64 = 0x3000;
const STUB_BYTES: u64 = 16;
pub(super) const PARAMS: u64 = 0x4000;
/// One page a vCPU: its task state at the bottom, its exception stack down from the top.
const TASKS: u64 = 0x8000;
const LOW_TABLES: u64 = 0x2_0000;
const LOW_TABLES_END: u64 = 0x20_0000;

const STACK_BYTES: u64 = 64 << 10;
const PAGE: u64 = PAGE_BYTES as u64;
const EXCEPTIONS: u64 = 32;

pub(super) const KERNEL_CODE: u16 = 0x08;
pub(super) const USER_DATA: u16 = 0x1b;
pub(super) const USER_CODE: u16 = 0x23;
const FIRST_TASK_SELECTOR: u16 = 0x40;

/// Present, writable, user, accessed, and dirty where it is a leaf: the processor never has to
/// write to these tables.
const TABLE: u64 = 0x27;
const LEAF: u64 = 0x67;

/// Where the loader's own data at the top of memory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placement {
    /// Stack top of each vCPU.
    pub(super) stack_tops: Vec<u64>,
    /// Page table pages, the root first.
    tables: Vec<u64>,
    /// Everything from here up belongs to the loader.
    pub(super) program_end: Gpa,
}

impl Placement {
    pub(super) fn new(layout: Layout, vcpu_count: u8) -> Self {
        let mut top = Descending { next: layout.end() };
        let stack_tops = (0..vcpu_count)
            .map(|_| top.take(STACK_BYTES) + STACK_BYTES)
            .collect();
        let needed = IdentityMap::new(layout).tables.len() as u64;
        let low = (LOW_TABLES..LOW_TABLES_END).step_by(PAGE_BYTES);
        let tables = if needed <= low.clone().count() as u64 {
            low.take(needed as usize).collect()
        } else {
            (0..needed).map(|_| top.take(PAGE)).collect()
        };
        Self {
            stack_tops,
            tables,
            program_end: Gpa(top.next),
        }
    }

    pub(super) fn root(&self) -> u64 {
        self.tables[0]
    }
}

/// The loader's pages that decide what may run at CPL 0: descriptor tables, stubs, task states, page
/// tables. A guest can write them; one that does may no longer be taken for unprivileged code.
#[derive(Clone, Debug)]
pub struct Guarded {
    pages: Vec<PageIndex>,
    root: u64,
}

impl Guarded {
    /// Those of a machine.
    pub fn new(layout: Layout, vcpu_count: u8) -> Self {
        let placement = Placement::new(layout, vcpu_count);
        let root = placement.root();
        let tables = placement.tables;
        let tasks = (0..vcpu_count).map(|vcpu| task_state(VcpuIndex(vcpu)));
        let mut pages: Vec<_> = [GDT, IDT, STUBS]
            .into_iter()
            .chain(tasks)
            .chain(tables)
            .filter_map(|page| layout.page_of(Gpa(page)))
            .collect();
        pages.sort_unstable();
        Self { pages, root }
    }

    /// Whether a vCPU of this state gets out of CPL 3 by what these pages say, and not otherwise.
    pub fn confine(&self, index: VcpuIndex, state: &VcpuState) -> bool {
        is_confined(state, index, self.root)
    }

    /// Whether a page is one of them.
    pub fn contains(&self, page: PageIndex) -> bool {
        self.pages.binary_search(&page).is_ok()
    }

    /// Whether they are all as the loader wrote them.
    pub fn are_intact(&self, image: &Image, shape: Shape) -> Result<bool, MemoryError> {
        let loaded = Image::new(shape)?;
        write_page_tables(&loaded, &Placement::new(image.layout(), shape.vcpu_count))?;
        write_tables(&loaded, shape.vcpu_count, "")?;
        let mut pages = self.pages.iter();
        Ok(pages.all(|&page| image.page_equals(&loaded, page)))
    }
}

/// Takes memory from the top down, past the hole.
struct Descending {
    next: u64,
}

impl Descending {
    fn take(&mut self, bytes: u64) -> u64 {
        if self.next >= HOLE_END && self.next - HOLE_END < bytes {
            self.next = HOLE_START;
        }
        self.next -= bytes;
        self.next
    }
}

/// The page tables of an identity map: a page for each table that maps something.
struct IdentityMap {
    /// Ranges that are mapped, one to one.
    mapped: Vec<Range<u64>>,
    /// `(level, first address)` of each table, the root (level 4) first. A table at level `n` covers
    /// 512^n pages.
    tables: Vec<(u32, u64)>,
}

impl IdentityMap {
    fn new(layout: Layout) -> Self {
        let mut mapped: Vec<_> = layout.regions().map(|(range, _)| range).collect();
        mapped.push(DEVICE_PAGE..DEVICE_PAGE + PAGE);
        mapped.sort_by_key(|range| range.start);
        let mut tables = vec![(4, 0)];
        for level in [3, 2, 1] {
            let span = PAGE << (9 * level);
            for range in &mapped {
                let starts = (range.start / span..=(range.end - 1) / span).map(|at| at * span);
                for start in starts {
                    if tables.last() != Some(&(level, start)) {
                        tables.push((level, start));
                    }
                }
            }
        }
        Self { mapped, tables }
    }

    fn leaf(&self, address: u64) -> u64 {
        let is_mapped = self.mapped.iter().any(|range| range.contains(&address));
        if is_mapped { address | LEAF } else { 0 }
    }
}

/// Writes the identity map of all guest memory, with the device page.
pub(super) fn write_page_tables(image: &Image, placement: &Placement) -> Result<(), MemoryError> {
    let map = IdentityMap::new(image.layout());
    let places: HashMap<(u32, u64), u64> = map
        .tables
        .iter()
        .copied()
        .zip(placement.tables.iter().copied())
        .collect();
    for (&(level, start), &table) in map.tables.iter().zip(&placement.tables) {
        let step = PAGE << (9 * (level - 1));
        let mut page = [0u8; PAGE_BYTES];
        for (slot, entry) in page.chunks_exact_mut(8).enumerate() {
            let address = start + slot as u64 * step;
            let value = if level == 1 {
                map.leaf(address)
            } else {
                places
                    .get(&(level - 1, address))
                    .map_or(0, |next| next | TABLE)
            };
            entry.copy_from_slice(&value.to_le_bytes());
        }
        image.write(Gpa(table), &page)?;
    }
    Ok(())
}

/// Address of a vCPU's task state.
pub(super) fn task_state(vcpu: VcpuIndex) -> u64 {
    TASKS + u64::from(vcpu.0) * PAGE
}

/// Steps a vCPU in a view, with the help of the stubs.
pub fn stepper(vcpu: VcpuIndex, view: &Arc<View>, stepping: Stepping) -> Stepper {
    Stepper {
        view: Arc::clone(view),
        stepping,
        port: EXCEPTION_PORT,
        stack_top: Gpa(task_state(vcpu) + PAGE),
        debug: kvm_debugregs::default(),
    }
}

/// Selector of a vCPU's task state.
pub(super) fn task_selector(vcpu: VcpuIndex) -> u16 {
    FIRST_TASK_SELECTOR + u16::from(vcpu.0) * 16
}

/// Base and limit of the descriptor tables: GDT, then IDT.
pub(super) fn descriptor_tables() -> [(u64, u16); 2] {
    [(GDT, 0x1000 - 1), (IDT, (EXCEPTIONS * 16 - 1) as u16)]
}

/// Bytes in a 64-bit task state segment.
pub(super) const TASK_BYTES: u32 = 104;

/// Writes the descriptor tables, stubs, task states and the parameter string.
pub(super) fn write_tables(image: &Image, vcpus: u8, params: &str) -> Result<(), MemoryError> {
    write_gdt(image, vcpus)?;
    for vector in 0..EXCEPTIONS {
        image.write(Gpa(IDT + vector * 16), &gate(vector))?;
        image.write(Gpa(STUBS + vector * STUB_BYTES), &stub(vector as u8))?;
    }
    for vcpu in (0..vcpus).map(VcpuIndex) {
        let stack_top = task_state(vcpu) + PAGE;
        // RSP0 and IST1: privilege changes, and double faults, find a good stack.
        image.write(Gpa(task_state(vcpu) + 4), &stack_top.to_le_bytes())?;
        image.write(Gpa(task_state(vcpu) + 36), &stack_top.to_le_bytes())?;
        let no_io_map = TASK_BYTES as u16;
        image.write(Gpa(task_state(vcpu) + 102), &no_io_map.to_le_bytes())?;
    }
    image.write(Gpa(PARAMS), params.as_bytes())
}

fn write_gdt(image: &Image, vcpus: u8) -> Result<(), MemoryError> {
    // Null, kernel code, kernel data, user data, user code; accessed bits set.
    let flat: [u64; 5] = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
    ];
    for (slot, entry) in flat.into_iter().enumerate() {
        image.write(Gpa(GDT + slot as u64 * 8), &entry.to_le_bytes())?;
    }
    for vcpu in (0..vcpus).map(VcpuIndex) {
        let base = task_state(vcpu);
        let busy_task = 0x8bu64;
        let low = u64::from(TASK_BYTES - 1)
            | (base & 0xff_ffff) << 16
            | busy_task << 40
            | (base >> 24 & 0xff) << 56;
        let at = GDT + u64::from(task_selector(vcpu));
        image.write(Gpa(at), &low.to_le_bytes())?;
        image.write(Gpa(at + 8), &(base >> 32).to_le_bytes())?;
    }
    Ok(())
}

/// An interrupt gate to the vector's stub. INT3 and INTO may come from CPL 3.
fn gate(vector: u64) -> [u8; 16] {
    const DOUBLE_FAULT: u64 = 8;
    let target = STUBS + vector * STUB_BYTES;
    let dpl = if matches!(vector, 3 | 4) { 3 } else { 0 };
    let mut gate = [0; 16];
    gate[0..2].copy_from_slice(&(target as u16).to_le_bytes());
    gate[2..4].copy_from_slice(&KERNEL_CODE.to_le_bytes());
    gate[4] = u8::from(vector == DOUBLE_FAULT);
    gate[5] = 0x8e | dpl << 5;
    gate[6..8].copy_from_slice(&((target >> 16) as u16).to_le_bytes());
    gate[8..12].copy_from_slice(&((target >> 32) as u32).to_le_bytes());
    gate
}

/// Pushes an error code of 0 where the vector has none, then the vector, and writes to the port.
fn stub(vector: u8) -> Vec<u8> {
    let has_error_code = matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30);
    let mut code = Vec::new();
    if !has_error_code {
        code.extend([0x6a, 0x00]); // push 0
    }
    code.extend([0x6a, vector]); // push vector
    code.extend([0xe6, EXCEPTION_PORT as u8]); // out port, al
    code.push(0xf4); // hlt
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use samsara_commitlog::Shape;

    fn layout(mib: u64) -> Layout {
        Layout::new(Shape {
            vcpu_count: 16,
            memory_bytes: mib << 20,
        })
    }

    #[test]
    fn small_machines_keep_their_tables_below_two_mebibytes() {
        let placement = Placement::new(layout(64), 16);
        assert!(placement.tables.iter().all(|&table| table < LOW_TABLES_END));
        assert_eq!(placement.stack_tops[0], 64 << 20);
        assert_eq!(placement.program_end, Gpa((64 << 20) - 16 * STACK_BYTES));
    }

    /// Every page that the loader writes, but the parameters, decides what runs at CPL 0.
    #[test]
    fn what_the_loader_wrote_is_guarded() {
        for (mib, vcpu_count) in [(16, 1), (64, 16), (2048, 3)] {
            let shape = Shape {
                vcpu_count,
                memory_bytes: mib << 20,
            };
            let image = Image::new(shape).unwrap();
            let layout = image.layout();
            let placement = Placement::new(layout, vcpu_count);
            write_page_tables(&image, &placement).unwrap();
            write_tables(&image, vcpu_count, "x").unwrap();
            let guarded = Guarded::new(layout, vcpu_count);
            let untouched = Image::new(shape).unwrap();
            let low = (0..LOW_TABLES_END).step_by(PAGE_BYTES);
            let mut written = 0;
            for page in low
                .chain(placement.tables)
                .filter_map(|page| layout.page_of(Gpa(page)))
            {
                let is_written = !image.page_equals(&untouched, page);
                let is_parameters = layout.gpa_of(page) == Gpa(PARAMS);
                assert_eq!(
                    guarded.contains(page),
                    is_written && !is_parameters,
                    "{page:?}"
                );
                written += usize::from(is_written);
            }
            assert!(written > 4 + usize::from(vcpu_count));
            assert!(guarded.are_intact(&image, shape).unwrap());
            image
                .write(Gpa(task_state(VcpuIndex(vcpu_count - 1)) + 36), &[1])
                .unwrap();
            assert!(!guarded.are_intact(&image, shape).unwrap());
        }
    }

    #[test]
    fn large_machines_keep_them_at_the_top_and_off_the_hole() {
        for mib in [2048, 3072, 3073, 4096, 65536] {
            let layout = layout(mib);
            let placement = Placement::new(layout, 16);
            for &table in &placement.tables {
                assert!(
                    layout.offset_of(Gpa(table), PAGE).is_some(),
                    "{mib} MiB: {table:#x}"
                );
            }
            for &top in &placement.stack_tops {
                assert!(
                    layout
                        .offset_of(Gpa(top - STACK_BYTES), STACK_BYTES)
                        .is_some()
                );
                assert_eq!(top % 16, 0);
            }
            assert!(placement.program_end.0 > 2 << 20);
        }
    }
}
