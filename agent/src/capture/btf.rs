//! Where a field stands in a structure of the running kernel, read from its BTF (the kernel's
//! Documentation/bpf/btf.rst). aya relocates nothing in programs written in Rust, so the programs
//! are told the offset when they are loaded.

use std::fs;

/// The type information of the running kernel.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u32 = 4;

/// Byte offset of `field` in `structure`; `None` where the kernel does not tell.
pub(super) fn offset_of(structure: &str, field: &str) -> Option<u32> {
    find(&fs::read(VMLINUX).ok()?, structure, field)
}

fn find(btf: &[u8], structure: &str, field: &str) -> Option<u32> {
    if u16::from_ne_bytes(btf.get(..2)?.try_into().ok()?) != MAGIC {
        return None;
    }
    let header = word(btf, 4)? as usize;
    let section = |at: usize| -> Option<&[u8]> {
        let start = header.checked_add(word(btf, at)? as usize)?;
        btf.get(start..start.checked_add(word(btf, at + 4)? as usize)?)
    };
    let (types, strings) = (section(8)?, section(16)?);
    let named = |offset: u32, name: &str| {
        let text = strings.get(offset as usize..).unwrap_or_default();
        text.strip_prefix(name.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&0))
    };
    let mut at = 0;
    while at < types.len() {
        let (name, info) = (word(types, at)?, word(types, at + 4)?);
        let (kind, count) = ((info >> 24) & 0x1f, (info & 0xffff) as usize);
        let members = at + 12;
        if kind == KIND_STRUCT && named(name, structure) {
            return (0..count)
                .map(|index| members + index * 12)
                .find(|member| word(types, *member).is_some_and(|name| named(name, field)))
                .and_then(|member| word(types, member + 8))
                // With the kind flag, the upper byte is the size of a bit field.
                .map(|bits| if info >> 31 == 1 { bits & 0x00ff_ffff } else { bits } / 8);
        }
        at = members + trailing(kind, count)?;
    }
    None
}

/// Bytes after the common part of a type; `None` for a kind that came after this was written.
fn trailing(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        // INT, VAR, DECL_TAG
        1 | 14 | 17 => 4,
        // ARRAY
        3 => 12,
        // STRUCT, UNION, DATASEC, ENUM64
        4 | 5 | 15 | 19 => count * 12,
        // ENUM, FUNC_PROTO
        6 | 13 => count * 8,
        // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Layouts that the kernel's interface fixes, so that the answers are known.
    #[test]
    fn the_running_kernel_tells() {
        let Ok(btf) = fs::read(VMLINUX) else {
            return;
        };
        for (structure, field, offset) in [
            ("sockaddr_in", "sin_port", 2),
            ("sockaddr_in", "sin_addr", 4),
            ("bpf_sock_addr", "protocol", 36),
            ("iphdr", "protocol", 9),
        ] {
            assert_eq!(find(&btf, structure, field), Some(offset), "{field}");
        }
        assert!(find(&btf, "task_struct", "flags").is_some_and(|offset| offset > 0));
        assert_eq!(find(&btf, "task_struct", "no_such_field"), None);
        assert_eq!(find(&btf, "no_such_struct", "flags"), None);
    }

    #[test]
    fn what_is_no_btf_tells_nothing() {
        assert_eq!(find(b"", "a", "b"), None);
        assert_eq!(find(&[0; 64], "a", "b"), None);
        let mut cut = MAGIC.to_ne_bytes().to_vec();
        cut.extend([1, 0]);
        for word in [24u32, 0, 1000, 1000, 1000] {
            cut.extend(word.to_ne_bytes());
        }
        assert_eq!(find(&cut, "a", "b"), None);
    }
}
