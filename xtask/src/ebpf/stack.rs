//! Checks the stack size of the programs by the rules of the Linux 5.10 verifier: each function's frame is rounded
//! up, and no call chain may use more than 512 bytes. Later kernels round up to smaller units, so a test on a newer
//! kernel does not find programs that Linux 5.10 rejects.
//!
//! Source: `check_max_stack_depth`, <https://github.com/torvalds/linux/blob/v5.10/kernel/bpf/verifier.c>.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection, SectionKind};

use super::calls::{Position, calls, functions};

/// `MAX_BPF_STACK`.
const LIMIT: u32 = 512;
/// Frame sizes are rounded up to a multiple of this.
const FRAME_UNIT: u32 = 32;
/// Register of the frame pointer.
const FRAME_POINTER: u8 = 10;

/// From linux/bpf.h: the mask of the instruction class in an opcode, and five classes.
const CLASS: u8 = 0x07;
const LDX: u8 = 0x01;
const ST: u8 = 0x02;
const STX: u8 = 0x03;
const ALU: u8 = 0x04;
const ALU64: u8 = 0x07;
/// Complete opcodes: `BPF_LD | BPF_IMM | BPF_DW`, `BPF_ALU64 | BPF_MOV | BPF_X` and `BPF_ALU64 | BPF_ADD | BPF_K`. An
/// instruction with the first opcode has 16 bytes. Its second half has opcode 0, and changes no register.
const LOAD: u8 = 0x18;
const MOVE: u8 = 0xbf;
const ADD: u8 = 0x07;

/// Returns an error if a call chain uses more stack than the limit.
pub(super) fn check(object: &[u8]) -> Result<()> {
    let file = object::File::parse(object).context("reading the BPF object as ELF")?;
    let functions = functions(&file);
    let mut graph = Graph::default();
    for (position, depth) in depths(&file, &functions)? {
        graph.frames.insert(position, depth);
    }
    for (call, callee) in calls(&file)? {
        // The caller is the function that contains the call: the last function before it in the same section.
        if let Some((caller, _)) = functions.range((call.0, 0)..=call).next_back() {
            graph.calls.entry(*caller).or_default().insert(callee);
        }
    }
    let chains = functions.keys().map(|function| graph.deepest(*function, &mut Vec::new()));
    let Some((bytes, chain)) = chains.max() else { return Ok(()) };
    let label = |position: &Position| {
        let (name, frame) = (functions.get(position)?, graph.frames.get(position).copied().unwrap_or(0));
        Some(format!("{name} ({frame})"))
    };
    let names: Vec<String> = chain.iter().filter_map(label).collect();
    ensure!(
        bytes <= LIMIT,
        "BPF object: the call chain {} uses {bytes} bytes of stack, but Linux 5.10 allows only {LIMIT}: in these \
         functions, keep fewer values that are still needed after a call",
        names.join(" → ")
    );
    Ok(())
}

/// The functions of the object. Each function is identified by the position of its first instruction: the section, and
/// the offset in the section.
#[derive(Default)]
struct Graph {
    /// The bytes of stack that each function uses, not rounded up.
    frames: BTreeMap<Position, u32>,
    /// The functions that each function calls.
    calls: BTreeMap<Position, BTreeSet<Position>>,
}

impl Graph {
    /// Of the call chains that start at `from`, returns the one that uses the most stack, with its number of bytes.
    /// `path`: the functions that lead to `from`. The search does not enter them again, so it ends even for a program
    /// that recurses, which the verifier would reject.
    fn deepest(&self, from: Position, path: &mut Vec<Position>) -> (u32, Vec<Position>) {
        let frame = self.frames.get(&from).copied().unwrap_or(0).max(1).next_multiple_of(FRAME_UNIT);
        path.push(from);
        let callees = self.calls.get(&from).into_iter().flatten().filter(|callee| !path.contains(callee));
        let callees: Vec<Position> = callees.copied().collect();
        let deepest_callee = callees.into_iter().map(|callee| self.deepest(callee, path)).max().unwrap_or_default();
        path.pop();
        (frame + deepest_callee.0, std::iter::once(from).chain(deepest_callee.1).collect())
    }
}

/// Returns the bytes of stack that each function uses.
fn depths(file: &object::File, functions: &BTreeMap<Position, &str>) -> Result<BTreeMap<Position, u32>> {
    let mut depths: BTreeMap<Position, u32> = BTreeMap::new();
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        let code = section.data().with_context(|| format!("reading section {:?}", section.name()))?;
        let mut pointers = BTreeMap::new();
        for (at, instruction) in (0..).step_by(8).zip(code.chunks_exact(8)) {
            let position = (section.index().0, at);
            let Some((function, _)) = functions.range((position.0, 0)..=position).next_back() else { continue };
            if *function == position {
                pointers.clear();
            }
            let deepest = depths.entry(*function).or_default();
            *deepest = (*deepest).max(depth_used(instruction, &mut pointers));
        }
    }
    Ok(depths)
}

/// Returns the depth in bytes below the frame pointer at which an instruction reads or writes memory, or the depth of
/// the address that it computes. Returns 0 for other instructions.
///
/// `pointers`: for each register with an address on the stack, the offset of this address from the frame pointer. The
/// instructions are read in the order of the code; jumps are not followed.
fn depth_used(instruction: &[u8], pointers: &mut BTreeMap<u8, i32>) -> u32 {
    let (code, registers) = (instruction[0], instruction[1]);
    let (destination, source) = (registers & 0x0f, registers >> 4);
    let offset = i32::from(i16::from_le_bytes([instruction[2], instruction[3]]));
    let constant = i32::from_le_bytes([instruction[4], instruction[5], instruction[6], instruction[7]]);
    let below = |offset: i32| offset.min(0).unsigned_abs();
    let address = |pointers: &BTreeMap<u8, i32>, register: u8| {
        if register == FRAME_POINTER { Some(0) } else { pointers.get(&register).copied() }
    };
    let (from, to) = (address(pointers, source), address(pointers, destination));
    let used = match code & CLASS {
        LDX => from.map(|base| base + offset),
        ST | STX => to.map(|base| base + offset),
        _ => None,
    };
    let result = match code {
        MOVE => from,
        ADD => to.map(|base| base + constant),
        _ => None,
    };
    match result {
        Some(address) => drop(pointers.insert(destination, address)),
        // The instruction writes another value to the register.
        None if code == LOAD || matches!(code & CLASS, LDX | ALU | ALU64) => drop(pointers.remove(&destination)),
        None => {}
    }
    let computed = if code == ADD { result } else { None };
    below(used.or(computed).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_loads_and_addresses_on_the_stack_are_measured() {
        let mut pointers = BTreeMap::new();
        let mut depth_of = |bytes: [u8; 8]| depth_used(&bytes, &mut pointers);
        // *(u64 *)(r10 - 48) = r2, and r2 = *(u64 *)(r10 - 24).
        assert_eq!(depth_of([0x7b, 0x2a, 0xd0, 0xff, 0, 0, 0, 0]), 48);
        assert_eq!(depth_of([0x79, 0xa2, 0xe8, 0xff, 0, 0, 0, 0]), 24);
        // r2 = r10 (the frame pointer), r2 += -64 and *(u64 *)(r2 - 8) = r1. Then r3 += -64, which does not count: r3
        // is no address on the stack.
        assert_eq!(depth_of([0xbf, 0xa2, 0, 0, 0, 0, 0, 0]), 0);
        assert_eq!(depth_of([0x07, 0x02, 0, 0, 0xc0, 0xff, 0xff, 0xff]), 64);
        assert_eq!(depth_of([0x7b, 0x12, 0xf8, 0xff, 0, 0, 0, 0]), 72);
        assert_eq!(depth_of([0x07, 0x03, 0, 0, 0xc0, 0xff, 0xff, 0xff]), 0);
        // r2 = *(u64 *)(r1 + 0), and r2 += -96: r2 is no address on the stack any more.
        assert_eq!(depth_of([0x79, 0x12, 0, 0, 0, 0, 0, 0]), 0);
        assert_eq!(depth_of([0x07, 0x02, 0, 0, 0xa0, 0xff, 0xff, 0xff]), 0);
        // r0 = r10, r2 = 5 ll (two halves, the second with register 0), and r0 += -64: r0 is still an address.
        assert_eq!(depth_of([0xbf, 0xa0, 0, 0, 0, 0, 0, 0]), 0);
        assert_eq!(depth_of([0x18, 0x02, 0, 0, 5, 0, 0, 0]), 0);
        assert_eq!(depth_of([0, 0, 0, 0, 0, 0, 0, 0]), 0);
        assert_eq!(depth_of([0x07, 0x00, 0, 0, 0xc0, 0xff, 0xff, 0xff]), 64);
    }

    #[test]
    fn frames_are_rounded_up_and_the_deepest_chain_is_found() {
        let [main, shallow, deep, leaf] = [(1, 0), (2, 0), (2, 8), (2, 16)];
        let graph = Graph {
            frames: BTreeMap::from([(main, 72), (shallow, 200), (deep, 136), (leaf, 288)]),
            calls: BTreeMap::from([(main, BTreeSet::from([shallow, deep])), (deep, BTreeSet::from([leaf]))]),
        };
        assert_eq!(graph.deepest(main, &mut Vec::new()), (96 + 160 + 288, vec![main, deep, leaf]));
        assert_eq!(graph.deepest((9, 0), &mut Vec::new()).0, 32, "a function without a frame counts as one unit");
    }
}
