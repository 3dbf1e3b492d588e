//! Where the running kernel's structs have their fields: its own description of its types (BTF), which every
//! user may read.
//!
//! Programs at raw tracepoints get the kernel's pointers. The offsets behind them differ between kernels, and
//! the compiler of the programs does not emit the relocations by which loaders adapt such accesses.

use std::fs;

use anyhow::{Context, bail};

const FILE: &str = "/sys/kernel/btf/vmlinux";

/// The kernel's types.
pub(super) struct KernelTypes {
    bytes: Vec<u8>,
    /// Where the names begin.
    names: usize,
    /// Where each type begins. The first is `void`, which has no description.
    types: Vec<usize>,
}

/// Kinds of types, by Documentation/bpf/btf.rst.
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FWD: u32 = 7;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const FLOAT: u32 = 16;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// The bytes of a type before what depends on its kind, and those of a member of a struct.
const HEAD: usize = 12;
const MEMBER: usize = 12;

impl KernelTypes {
    pub(super) fn read() -> anyhow::Result<Self> {
        let bytes =
            fs::read(FILE).with_context(|| format!("reading {FILE}, the kernel's type information"))?;
        Self::parse(bytes).with_context(|| format!("reading {FILE}"))
    }

    fn parse(bytes: Vec<u8>) -> anyhow::Result<Self> {
        const MAGIC: u32 = 0xeb9f;
        let mut kernel_types = KernelTypes { bytes, names: 0, types: vec![usize::MAX] };
        if kernel_types.word(0)? & 0xffff != MAGIC {
            bail!("it is not BTF");
        }
        let [header, first, length, names] = [4, 8, 12, 16].map(|at| kernel_types.word(at));
        let (header, first, length) = (header? as usize, first? as usize, length? as usize);
        kernel_types.names = header + names? as usize;
        let (mut at, end) = (header + first, header + first + length);
        while at < end {
            kernel_types.types.push(at);
            at += HEAD + kernel_types.length_of_rest(at)?;
        }
        Ok(kernel_types)
    }

    /// The offset of a field in bytes. A path names a struct, then a field and fields of that one.
    pub(super) fn offset(&self, path: &[&str]) -> anyhow::Result<u32> {
        let [name, fields @ ..] = path else { bail!("no struct is named") };
        let found = self.types[1..].iter().find(|at| {
            self.kind(**at).is_ok_and(|kind| kind == kind::STRUCT)
                && self.name(**at).is_ok_and(|own| own == name.as_bytes())
        });
        let mut at = *found.with_context(|| format!("the kernel has no struct {name}"))?;
        let mut offset = 0;
        for field in fields {
            let (inside, type_id) = self
                .member(at, field)?
                .with_context(|| format!("the kernel's {} has no field {field}", path.join(".")))?;
            offset += inside;
            at = self.structure(type_id)?;
        }
        Ok(offset)
    }

    /// The offset and the type of a field, also of one in an unnamed struct or union.
    fn member(&self, at: usize, field: &str) -> anyhow::Result<Option<(u32, u32)>> {
        let (kind, info) = (self.kind(at)?, self.word(at + 4)?);
        if kind != kind::STRUCT && kind != kind::UNION {
            return Ok(None);
        }
        for member in (0..(info & 0xffff) as usize).map(|n| at + HEAD + n * MEMBER) {
            let (type_id, place) = (self.word(member + 4)?, self.word(member + 8)?);
            // With bit fields, the upper byte is the number of bits.
            let bits = if info >> 31 == 1 { place & 0xff_ffff } else { place };
            let name = self.name(member)?;
            if name == field.as_bytes() {
                return Ok(Some((bits / 8, type_id)));
            }
            if name.is_empty()
                && let Some((inside, type_id)) = self.member(self.structure(type_id)?, field)?
            {
                return Ok(Some((bits / 8 + inside, type_id)));
            }
        }
        Ok(None)
    }

    /// Where a type begins, behind the names that it has.
    fn structure(&self, type_id: u32) -> anyhow::Result<usize> {
        let at = *self.types.get(type_id as usize).context("a type that is not described")?;
        match self.kind(at) {
            Ok(kind::TYPEDEF | kind::CONST | kind::VOLATILE | kind::TYPE_TAG) => {
                self.structure(self.word(at + 8)?)
            }
            _ => Ok(at),
        }
    }

    fn kind(&self, at: usize) -> anyhow::Result<u32> {
        Ok(self.word(at + 4)? >> 24 & 0x1f)
    }

    /// The bytes of a type behind its head.
    fn length_of_rest(&self, at: usize) -> anyhow::Result<usize> {
        let members = (self.word(at + 4)? & 0xffff) as usize;
        Ok(match self.kind(at)? {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => members * 12,
            kind::ENUM | kind::FUNC_PROTO => members * 8,
            kind::PTR
            | kind::FWD
            | kind::TYPEDEF
            | kind::VOLATILE
            | kind::CONST
            | kind::RESTRICT
            | kind::FUNC
            | kind::FLOAT
            | kind::TYPE_TAG => 0,
            unknown => bail!("types of kind {unknown} are not known"),
        })
    }

    /// The name of a type or a member.
    fn name(&self, at: usize) -> anyhow::Result<&[u8]> {
        let from = self.names + self.word(at)? as usize;
        let rest = self.bytes.get(from..).context("a name beyond the end")?;
        Ok(rest.split(|byte| *byte == 0).next().unwrap_or_default())
    }

    fn word(&self, at: usize) -> anyhow::Result<u32> {
        let word = self.bytes.get(at..).and_then(|rest| rest.first_chunk());
        Ok(u32::from_ne_bytes(*word.context("it ends early")?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Types of the kernel's that are part of its interface, and so have known offsets.
    #[test]
    fn offsets_are_those_of_the_headers() {
        let types = KernelTypes::read().unwrap();
        for (path, offset) in [
            (&["iphdr", "protocol"][..], 9),
            (&["iphdr", "daddr"], 16),
            (&["ipv6hdr", "daddr", "in6_u"], 24),
            (&["xdp_md", "ingress_ifindex"], 12),
        ] {
            assert_eq!(types.offset(path).unwrap(), offset, "{path:?}");
        }
        let missing = types.offset(&["iphdr", "colour"]).unwrap_err().to_string();
        assert!(missing.contains("iphdr.colour has no field colour"), "{missing}");
        assert!(types.offset(&["no_such_struct"]).is_err());
    }

    #[test]
    fn cut_descriptions_are_refused() {
        let whole = fs::read(FILE).unwrap();
        for length in [0, 7, 24, 1000] {
            assert!(KernelTypes::parse(whole[..length].to_vec()).is_err(), "{length}");
        }
    }
}
