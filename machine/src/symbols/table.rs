//! A symbol table, sorted for look-ups.

use std::ops::Range;

use elf::abi;
use elf::endian::LittleEndian;
use elf::file::Class;
use elf::parse::ParsingTable;
use elf::symbol;

/// Bytes of a name that are shown.
const NAME_BYTES_MAX: usize = 128;

/// A name for a range of addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol {
    start: u64,
    /// 0 where the file does not say.
    bytes: u64,
    name: u32,
}

/// Functions and objects, by their addresses.
#[derive(Debug)]
pub(super) struct SymbolTable {
    functions: Vec<Symbol>,
    objects: Vec<Symbol>,
    names: Vec<u8>,
}

impl SymbolTable {
    /// From the contents of the two sections.
    pub(super) fn new(symbols: &[u8], names: Vec<u8>) -> Self {
        let table = ParsingTable::<_, symbol::Symbol>::new(LittleEndian, Class::ELF64, symbols);
        let (mut functions, mut objects) = (Vec::new(), Vec::new());
        for found in table.iter().filter(is_defined) {
            let symbol = Symbol {
                start: found.st_value,
                bytes: found.st_size,
                name: found.st_name,
            };
            match found.st_symtype() {
                abi::STT_FUNC | abi::STT_NOTYPE => functions.push(symbol),
                abi::STT_OBJECT if symbol.bytes > 0 => objects.push(symbol),
                _ => {}
            }
        }
        Self {
            functions: sorted(functions),
            objects: sorted(objects),
            names,
        }
    }

    /// The function that an address is in, and how far into it.
    pub(super) fn function_at(&self, address: u64) -> Option<(String, u64)> {
        let next = self
            .functions
            .partition_point(|symbol| symbol.start <= address);
        let nearest = &self.functions[next.checked_sub(1)?];
        let offset = address - nearest.start;
        let is_inside = nearest.bytes == 0 || offset < nearest.bytes;
        is_inside.then(|| (self.name(nearest), offset))
    }

    /// The objects with a byte in `addresses`, lowest first. Of one that began earlier only the nearest is looked at.
    pub(super) fn objects_in(&self, addresses: &Range<u64>) -> &[Symbol] {
        let place = |address| {
            self.objects
                .partition_point(|symbol| symbol.start < address)
        };
        let (mut first, end) = (place(addresses.start), place(addresses.end));
        let before = first.checked_sub(1).map(|index| &self.objects[index]);
        if before.is_some_and(|symbol| addresses.start - symbol.start < symbol.bytes) {
            first -= 1;
        }
        &self.objects[first..end]
    }

    /// A symbol's name, fit for a terminal.
    pub(super) fn name(&self, symbol: &Symbol) -> String {
        let rest = self.names.get(symbol.name as usize..).unwrap_or_default();
        let rest = &rest[..rest.len().min(NAME_BYTES_MAX)];
        let end = rest.iter().position(|&byte| byte == 0);
        let name = &rest[..end.unwrap_or(rest.len())];
        let shown = |&byte: &u8| {
            let is_shown = byte.is_ascii_graphic();
            char::from(if is_shown { byte } else { b'?' })
        };
        name.iter().map(shown).collect()
    }
}

fn is_defined(symbol: &symbol::Symbol) -> bool {
    !symbol.is_undefined() && symbol.st_shndx != abi::SHN_ABS && symbol.st_name != 0
}

/// By address, each once: the largest of those that begin there.
fn sorted(mut symbols: Vec<Symbol>) -> Vec<Symbol> {
    symbols.sort_by_key(|symbol| (symbol.start, std::cmp::Reverse(symbol.bytes)));
    symbols.dedup_by_key(|symbol| symbol.start);
    symbols.shrink_to_fit();
    symbols
}
