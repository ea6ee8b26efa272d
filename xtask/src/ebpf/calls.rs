//! Checks that the eBPF programs do not call library functions. The compiler can generate calls of `memcpy` and similar
//! functions. The flags in [`crate::toolchain`] prevent most of these calls, and this check finds those that remain.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionKind, SymbolKind};

/// Functions to which compilers generate calls. Each is a loop over bytes, which the verifier processes again for each
/// caller.
const LIBRARY_FUNCTIONS: [&str; 5] = ["memcpy", "memmove", "memset", "memcmp", "bcmp"];

/// Bytes in an instruction.
const INSTRUCTION_BYTES: u64 = 8;
/// `BPF_JMP | BPF_CALL`, from linux/bpf.h.
const CALL: u8 = 0x85;
/// `BPF_PSEUDO_CALL` as source register: calls a function of the object, not a kernel helper.
const BPF_FUNCTION: u8 = 1;

/// A position in the object: section index, and bytes from the section's start.
pub(super) type Position = (usize, u64);

/// Returns an error if a function of the object calls one of [`LIBRARY_FUNCTIONS`].
pub(super) fn check(object: &[u8]) -> Result<()> {
    let found = library_calls(object)?;
    ensure!(
        found.is_empty(),
        "BPF object: {}, which verifiers before Linux 6.2 may reject. In the callers, clear and \
         copy single fields or fixed lengths; see the flags in xtask/src/toolchain.rs",
        found.join(", ")
    );
    Ok(())
}

/// Returns, for example, `netpol_egress calls memset`, once for each pair.
fn library_calls(object: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(object).context("reading the BPF object as ELF")?;
    let functions = functions(&file);
    // Without the names of functions, the check would find nothing.
    ensure!(!functions.is_empty(), "the BPF object has no functions in its symbol table (stripped?)");

    let mut found = Vec::new();
    for (caller, callee) in calls(&file)? {
        let Some(name) = functions.get(&callee).filter(|name| LIBRARY_FUNCTIONS.contains(name)) else { continue };
        // The function that contains the call: the last one that starts before it.
        let caller = functions.range((caller.0, 0)..=caller).next_back().map_or("code", |(_, name)| *name);
        // Library functions may call each other. Only calls by other functions matter.
        if !LIBRARY_FUNCTIONS.contains(&caller) {
            found.push(format!("{caller} calls {name}"));
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Returns the names of functions by position.
pub(super) fn functions<'a>(file: &'a object::File) -> BTreeMap<Position, &'a str> {
    let symbols = file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text);
    symbols.filter_map(|symbol| Some(((symbol.section_index()?.0, symbol.address()), symbol.name().ok()?))).collect()
}

/// Returns each call to a function of the object: the positions of the call instruction and of the called function.
pub(super) fn calls(file: &object::File) -> Result<Vec<(Position, Position)>> {
    let mut calls = Vec::new();
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        let code = section.data().with_context(|| format!("reading section {:?}", section.name()))?;
        let relocations: BTreeMap<u64, _> = section.relocations().collect();
        for (at, instruction) in (0..).step_by(8).zip(code.chunks_exact(8)) {
            if instruction[0] != CALL || instruction[1] >> 4 != BPF_FUNCTION {
                continue;
            }
            let distance = i64::from(i32::from_le_bytes([4, 5, 6, 7].map(|byte: usize| instruction[byte])));
            // The distance is relative to the instruction after the call. With a relocation, it is relative to the
            // instruction after the symbol's position.
            let offset = (distance + 1) * INSTRUCTION_BYTES.cast_signed();
            let callee = match relocations.get(&at).map(object::Relocation::target) {
                Some(RelocationTarget::Symbol(index)) => {
                    let symbol = file.symbol_by_index(index).context("a call's relocation has no symbol")?;
                    let section = symbol.section_index().context("a call's symbol is in no section")?;
                    (section.0, symbol.address().wrapping_add_signed(offset))
                }
                _ => (section.index().0, at.wrapping_add_signed(offset)),
            };
            calls.push(((section.index().0, at), callee));
        }
    }
    Ok(calls)
}

#[cfg(test)]
mod tests {
    use object::write::{self, Relocation, Symbol, SymbolSection};
    use object::{Architecture, BinaryFormat, Endianness, RelocationFlags, SymbolFlags, SymbolScope, elf};

    use super::*;

    /// Returns an object with a function `program` in a section of its own. `program` calls the function with the name
    /// `name`, which is the second function in the section `.text`. The relocation of the call is against the symbol of
    /// this function, or, if `by_section` is true, against the symbol of the section.
    fn program_that_calls(name: &str, by_section: bool) -> Vec<u8> {
        let exit = [0x95, 0, 0, 0, 0, 0, 0, 0];
        let mut file = write::Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
        let text = file.section_id(write::StandardSection::Text);
        file.append_section_data(text, &[exit, exit].concat(), 8);
        file.add_symbol(function("first", text, 0));
        let callee = file.add_symbol(function(name, text, INSTRUCTION_BYTES));
        let section_symbol = file.section_symbol(text);

        let programs = file.add_section(Vec::new(), b"classifier".to_vec(), SectionKind::Text);
        // The number of instructions from the symbol to the callee, minus one: see `calls`.
        let distance: i32 = if by_section { 0 } else { -1 };
        let mut call = [CALL, BPF_FUNCTION << 4, 0, 0, 0, 0, 0, 0];
        call[4..].copy_from_slice(&distance.to_le_bytes());
        file.append_section_data(programs, &[call, exit].concat(), 8);
        file.add_symbol(function("program", programs, 0));
        let symbol = if by_section { section_symbol } else { callee };
        let flags = RelocationFlags::Elf { r_type: elf::R_BPF_64_32 };
        file.add_relocation(programs, Relocation { offset: 0, symbol, addend: 0, flags }).expect("a relocation of BPF");
        file.write().expect("an ELF file")
    }

    fn function(name: &str, section: write::SectionId, value: u64) -> Symbol {
        Symbol {
            name: name.into(),
            value,
            size: INSTRUCTION_BYTES,
            kind: SymbolKind::Text,
            scope: SymbolScope::Linkage,
            weak: false,
            section: SymbolSection::Section(section),
            flags: SymbolFlags::None,
        }
    }

    #[test]
    fn calls_generated_by_the_compiler_are_found() {
        for by_section in [false, true] {
            let object = |name| program_that_calls(name, by_section);
            assert_eq!(library_calls(&object("memset")).unwrap(), ["program calls memset"], "by_section: {by_section}");
            assert!(library_calls(&object("netpol_walk")).unwrap().is_empty(), "by_section: {by_section}");
        }
    }

    #[test]
    fn an_object_without_symbols_is_rejected() {
        let file = write::Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
        assert!(check(&file.write().expect("an ELF file")).unwrap_err().to_string().contains("no functions"));
    }
}
