//! Views: isolation, residency as the read set, and what KVM shows of both.

use std::sync::Arc;
use std::time::Duration;

use samsara_commitlog::{ByteRunsBuilder, Gpa, VcpuIndex};
use samsara_machine::bare::{DEVICE_PAGE, Program, boot, register};
use samsara_machine::kvm::{Privilege, RawExit, Restore, Vcpu, Vm};
use samsara_machine::memory::{Image, PageIndex, Residency, View};

use crate::elf::{Elf, write};
use crate::entry::host;
use crate::{GIB, MIB, image};

const FROM: u64 = 0x30_0000;
const TO: u64 = 0x30_1000;

fn residency(view: &View, address: u64) -> Residency {
    let page = view.layout().page_of(Gpa(address)).unwrap();
    let mut residency = None;
    view.residency(&[page], |_, found| residency = Some(found))
        .unwrap();
    residency.unwrap()
}

fn page(view: &View, address: u64) -> PageIndex {
    view.layout().page_of(Gpa(address)).unwrap()
}

fn set(image: &Image, address: u64, value: u64) {
    image.write(Gpa(address), &value.to_le_bytes()).unwrap();
}

#[test]
fn residency_tells_what_was_touched_and_how() {
    let image = image(5 * GIB);
    let view = View::new(&image).unwrap();
    for address in [FROM, 3 * GIB - 4096, 4 * GIB, 6 * GIB - 4096] {
        set(&image, address, 7);
        set(&image, address - 4096 * u64::from(address != 4 * GIB), 7);
        assert_eq!(residency(&view, address), Residency::Absent, "{address:#x}");
        assert_eq!(view.load(Gpa(address)).unwrap(), 7);
        assert_eq!(residency(&view, address), Residency::Image);
        set(&image, address, 8);
        assert_eq!(
            view.load(Gpa(address)).unwrap(),
            8,
            "an untouched page follows the image"
        );
        view.store(Gpa(address), 9).unwrap();
        assert_eq!(residency(&view, address), Residency::Private);
        set(&image, address, 10);
        assert_eq!(
            view.load(Gpa(address)).unwrap(),
            9,
            "a private page does not"
        );
        assert!(!view.equals_image(page(&view, address)));
        view.refresh(page(&view, address));
        assert_eq!(view.load(Gpa(address)).unwrap(), 10);
        assert_eq!(
            residency(&view, address),
            Residency::Private,
            "refreshed, so still held"
        );
        view.store(Gpa(address), 11).unwrap();
        view.drop_pages(&[page(&view, address)]).unwrap();
        assert_eq!(residency(&view, address), Residency::Absent);
        assert_eq!(view.load(Gpa(address)).unwrap(), 10);
    }
}

/// Neighbours of a page that was touched do not join the read set.
#[test]
fn a_fault_maps_one_page() {
    let image = image(16 * MIB);
    (0..64).for_each(|page| set(&image, FROM + page * 4096, page));
    let view = View::new(&image).unwrap();
    if !view.faults_are_exact() {
        println!("skipped: this kernel's faults map neighbours too");
        return;
    }
    view.load(Gpa(FROM + 20 * 4096)).unwrap();
    view.store(Gpa(FROM + 40 * 4096), 1).unwrap();
    for page in 0..64 {
        let expected = match page {
            20 => Residency::Image,
            40 => Residency::Private,
            _ => Residency::Absent,
        };
        assert_eq!(
            residency(&view, FROM + page * 4096),
            expected,
            "page {page}"
        );
    }
}

#[test]
fn views_are_isolated_and_changes_are_by_value() {
    let image = image(16 * MIB);
    let views: Vec<_> = (0..2).map(|_| View::new(&image).unwrap()).collect();
    views[0].store(Gpa(FROM + 8), 0x1122).unwrap();
    assert_eq!(views[1].load(Gpa(FROM + 8)).unwrap(), 0);
    let changes = |view: &View| {
        let mut out = ByteRunsBuilder::default();
        let page = page(view, FROM);
        if let Some(changed) = view.changed_words(page) {
            view.push_changes(page, &changed, &mut out);
        }
        out.finish()
            .iter()
            .map(|(at, bytes)| (at, bytes.to_vec()))
            .collect::<Vec<_>>()
    };
    assert_eq!(changes(&views[0]), [(FROM + 8, vec![0x22, 0x11])]);
    views[0].store(Gpa(FROM + 8), 0).unwrap();
    assert_eq!(changes(&views[0]), [], "taken back, so not written");
    assert!(views[0].load(Gpa(16 * MIB)).is_err() && views[0].load(Gpa(FROM + 4)).is_err());
}

/// Copies a word from `FROM` to `TO` and says it at YIELD, for ever.
fn copier() -> Vec<u8> {
    let mut code = vec![0x48, 0x8b, 0x04, 0x25, 0, 0, 0x30, 0]; // again: mov rax, [FROM]
    code.extend([0x48, 0x89, 0x04, 0x25, 0, 0x10, 0x30, 0]); // mov [TO], rax
    code.push(0xb9); // mov ecx, YIELD
    code.extend(((DEVICE_PAGE + register::YIELD) as u32).to_le_bytes());
    code.extend([0x48, 0x89, 0x01]); // mov [rcx], rax
    code.extend([0xeb, 0xe6]); // jmp again
    code
}

struct Copier {
    image: Arc<Image>,
    vcpu: Vcpu,
    view: View,
    _vm: Vm,
}

impl Copier {
    fn start() -> Option<Self> {
        let host = host()?;
        let image = image(16 * MIB);
        let file = write(&Elf::of(&copier()).bytes());
        let program = Program::open(file.path()).unwrap();
        let states = boot(&host, &image, 1, &program, "").unwrap();
        let view = View::new(&image).unwrap();
        let vm = Vm::on_view(&host, &view).unwrap();
        let mut vcpu = vm.vcpu(&host, VcpuIndex(0), Privilege::User).unwrap();
        vcpu.attach().unwrap();
        vcpu.restore(&states[0], Restore::Whole).unwrap();
        Some(Self {
            image,
            vcpu,
            view,
            _vm: vm,
        })
    }

    /// The word that it found, and the pages that it was the first to write.
    fn turn(&mut self) -> (u64, Vec<PageIndex>) {
        let exit = self.vcpu.run(Some(Duration::from_secs(5))).unwrap();
        let mut written = Vec::new();
        self.vcpu.take_written(|page| written.push(page)).unwrap();
        match exit {
            RawExit::Write { value, .. } => (value, written),
            other => panic!("{other:?}"),
        }
    }
}

/// What a guest reads is resident, what it writes is private and reported; both again after a drop.
#[test]
fn a_guest_cannot_read_or_write_past_residency_and_ring() {
    let Some(mut guest) = Copier::start() else {
        return;
    };
    set(&guest.image, FROM, 5);
    let (from, to) = (page(&guest.view, FROM), page(&guest.view, TO));
    for round in 0..3 {
        let (value, written) = guest.turn();
        assert_eq!(value, 5);
        assert!(
            written.contains(&to) && !written.contains(&from),
            "round {round}: {written:?}"
        );
        assert_eq!(residency(&guest.view, FROM), Residency::Image);
        assert_eq!(residency(&guest.view, TO), Residency::Private);
        let (_, written) = guest.turn();
        assert!(!written.contains(&to), "a held page is reported once");
        guest.view.drop_pages(&[from, to]).unwrap();
        assert_eq!(residency(&guest.view, FROM), Residency::Absent);
    }
}

/// Changes of the image, and of the view by this process, reach a guest that has the page mapped.
#[test]
fn a_guest_sees_what_its_view_shows() {
    let Some(mut guest) = Copier::start() else {
        return;
    };
    set(&guest.image, FROM, 1);
    assert_eq!(guest.turn().0, 1);
    set(&guest.image, FROM, 2);
    assert_eq!(guest.turn().0, 2, "the image's own page");
    guest.view.store(Gpa(FROM), 3).unwrap();
    assert_eq!(guest.turn().0, 3, "a page made private by this process");
    set(&guest.image, FROM, 4);
    assert_eq!(guest.turn().0, 3, "isolated");
    guest.view.refresh(page(&guest.view, FROM));
    assert_eq!(guest.turn().0, 4, "refreshed");
    set(&guest.image, FROM, 5);
    guest.view.drop_pages(&[page(&guest.view, FROM)]).unwrap();
    assert_eq!(guest.turn().0, 5, "dropped");
}
