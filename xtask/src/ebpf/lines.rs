//! Corrects the line info of the BPF object. An entry of the line info has the offset of an instruction and its source
//! line. The kernel accepts only strictly ascending offsets (`check_btf_line`), so each instruction may have only one
//! entry. But the sources hide some values from the compiler with empty inline assembly, which has no instruction. The
//! entry for this assembly has the offset of the next instruction, so this instruction has two entries.
//!
//! Source: <https://github.com/torvalds/linux/blob/v6.12/kernel/bpf/verifier.c>; the layout of `.BTF.ext`:
//! <https://docs.kernel.org/bpf/btf.html#btf-ext-section>.

use anyhow::{Context, Result};
use object::{Object, ObjectSection};

/// Positions of three fields in the header of `.BTF.ext`: the length of the header, the offset of the line info, and
/// the length of the line info. The offset of the line info counts from the end of the header.
const HEADER_LENGTH_FIELD: usize = 4;
const LINE_OFFSET_FIELD: usize = 16;
const LINE_LENGTH_FIELD: usize = 20;
/// The line info has a list of entries for each ELF section with instructions. Size of the header of such a list: name
/// of the section and number of entries.
const SECTION_HEADER: usize = 8;

/// Keeps only the last entry of the line info for each instruction. The object keeps its length, and the unused rest of
/// the line info is filled with zeros.
pub(super) fn keep_one_for_each_instruction(object: &mut [u8]) -> Result<()> {
    let range = {
        let file = object::File::parse(&*object).context("reading the BPF object as ELF")?;
        let Some(section) = file.section_by_name(".BTF.ext") else { return Ok(()) };
        section.file_range().context(".BTF.ext is not in the file")?
    };
    let start = usize::try_from(range.0)?;
    let section = object.get_mut(start..start + usize::try_from(range.1)?).context(".BTF.ext ends beyond the file")?;
    let line_info = u32_at(section, HEADER_LENGTH_FIELD)? + u32_at(section, LINE_OFFSET_FIELD)?;
    let length = u32_at(section, LINE_LENGTH_FIELD)?;
    let old = section.get(line_info..line_info + length).context("line info ends beyond its section")?;
    let mut new = compact(old)?;
    section[LINE_LENGTH_FIELD..LINE_LENGTH_FIELD + 4].copy_from_slice(&u32::try_from(new.len())?.to_le_bytes());
    new.resize(length, 0);
    section[line_info..line_info + length].copy_from_slice(&new);
    Ok(())
}

/// Returns the line info with only the last entry for each instruction.
fn compact(line_info: &[u8]) -> Result<Vec<u8>> {
    // The size of an entry, called a record in the kernel.
    let size = u32_at(line_info, 0)?;
    let mut new = line_info.get(..4).context("line info without its record size")?.to_vec();
    let mut rest = &line_info[4..];
    while !rest.is_empty() {
        let count = u32_at(rest, 4)?;
        let records = rest.get(SECTION_HEADER..SECTION_HEADER + count * size).context("line info is cut off")?;
        let records: Vec<&[u8]> = records.chunks(size).collect();
        let is_last = |index: usize| records.get(index + 1).is_none_or(|next| next[..4] != records[index][..4]);
        let kept: Vec<&[u8]> = (0..records.len()).filter(|index| is_last(*index)).map(|index| records[index]).collect();
        new.extend(&rest[..4]);
        new.extend(u32::try_from(kept.len())?.to_le_bytes());
        for record in kept {
            new.extend(record);
        }
        rest = &rest[SECTION_HEADER + count * size..];
    }
    Ok(new)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<usize> {
    let bytes = bytes.get(at..at + 4).context(".BTF.ext is cut off")?;
    Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_entry_for_an_instruction_is_kept() {
        let record = |instruction: u32, line: u32| [instruction.to_le_bytes(), line.to_le_bytes()].concat();
        let section = |name: u32, records: &[(u32, u32)]| {
            let count = u32::try_from(records.len()).unwrap();
            let records = records.iter().flat_map(|(instruction, line)| record(*instruction, *line));
            [name.to_le_bytes(), count.to_le_bytes()].concat().into_iter().chain(records).collect::<Vec<u8>>()
        };
        let line_info = |sections: &[Vec<u8>]| [&8_u32.to_le_bytes()[..], &sections.concat()].concat();
        let old =
            line_info(&[section(1, &[(0, 10), (8, 11), (8, 12), (8, 13), (16, 14)]), section(2, &[(0, 20), (0, 21)])]);
        let new = line_info(&[section(1, &[(0, 10), (8, 13), (16, 14)]), section(2, &[(0, 21)])]);
        assert_eq!(compact(&old).unwrap(), new);
    }
}
