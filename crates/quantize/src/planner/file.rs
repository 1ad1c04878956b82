//! The file of a plan: lines that people can read, compare and edit.
//!
//! ```text
//! marlin plan 1
//! # What follows a hash is a comment.
//! set format exl3
//! model.layers.0.self_attn.q_proj 4
//! model.layers.1.mlp.experts.0 gate_proj=3 up_proj=3 down_proj=4
//! ```
//!
//! The first line names the kind of file and its version. `set KEY VALUE` is a setting, for whoever applies the plan. Every
//! other line gives a module its bits, or the modules of one expert theirs.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

use super::{Module, expert};
use crate::{Error, Result};

const FIRST: &str = "marlin plan 1";

/// Bits of modules, with settings, as a file has them.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    name: String,
    /// Settings that the file makes.
    pub settings: BTreeMap<String, String>,
    /// Modules and bits, in the order of the file.
    pub bits: Vec<(String, u32)>,
    /// Of each entry of `bits` (0: it was not read from a file).
    lines: Vec<usize>,
}

impl PartialEq for Plan {
    /// Whether the settings and the modules with their bits are the same.
    fn eq(&self, other: &Self) -> bool {
        (&self.settings, &self.bits) == (&other.settings, &other.bits)
    }
}

impl Plan {
    /// A plan with these bits.
    pub fn new(bits: Vec<(String, u32)>) -> Self {
        Self { lines: vec![0; bits.len()], bits, ..Self::default() }
    }

    /// Reads a plan; errors name `name` and the line.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let wrong = |line: usize, why: String| Error::Plan { file: name.to_owned(), line, why };
        let mut plan = Self { name: name.to_owned(), ..Self::default() };
        let mut seen: HashMap<String, usize> = HashMap::new();
        let mut lines = text.lines().enumerate().map(|(i, line)| (i + 1, line.split('#').next().unwrap_or("").trim()));
        match lines.by_ref().find(|(_, line)| !line.is_empty()) {
            Some((_, FIRST)) => {}
            Some((n, found)) => return Err(wrong(n, format!("expected {FIRST:?}, found {found:?}"))),
            None => return Err(wrong(1, format!("expected {FIRST:?}, found an empty file"))),
        }
        for (n, line) in lines.filter(|(_, line)| !line.is_empty()) {
            let mut words = line.split_whitespace();
            let first = words.next().unwrap_or("");
            let rest: Vec<&str> = words.collect();
            if first == "set" {
                let [key, value] = rest[..] else {
                    return Err(wrong(n, format!("expected \"set KEY VALUE\", found {line:?}")));
                };
                if plan.settings.insert(key.to_owned(), value.to_owned()).is_some() {
                    return Err(wrong(n, format!("setting {key:?} is made twice")));
                }
                continue;
            }
            let number = |text: &str| {
                let bits = text.parse().ok();
                bits.ok_or_else(|| wrong(n, format!("expected a number of bits, found {text:?}")))
            };
            let entries: Vec<(String, u32)> = match rest[..] {
                [] => return Err(wrong(n, format!("expected bits after {first:?}, found nothing"))),
                [bits] if !bits.contains('=') => vec![(first.to_owned(), number(bits)?)],
                _ => rest
                    .iter()
                    .map(|word| {
                        let (part, bits) = word
                            .split_once('=')
                            .ok_or_else(|| wrong(n, format!("expected \"MODULE=BITS\", found {word:?}")))?;
                        Ok((format!("{first}.{part}"), number(bits)?))
                    })
                    .collect::<Result<_>>()?,
            };
            for (module, bits) in entries {
                if let Some(earlier) = seen.insert(module.clone(), n) {
                    return Err(wrong(n, format!("{module} has its bits on line {earlier} already")));
                }
                plan.bits.push((module, bits));
                plan.lines.push(n);
            }
        }
        Ok(plan)
    }

    /// Bits of each of these modules, in their order. A module of the plan that is not among them, one of them that the plan
    /// does not have, and bits that are no choice of a module's are refused.
    pub fn bits_of(&self, modules: &[Module]) -> Result<Vec<u32>> {
        let places: HashMap<&str, usize> = modules.iter().enumerate().map(|(i, m)| (m.name.as_str(), i)).collect();
        let mut bits = vec![None; modules.len()];
        for ((module, b), line) in self.bits.iter().zip(&self.lines) {
            let wrong = |why: String| Error::Plan { file: self.name.clone(), line: *line, why };
            let place = places.get(module.as_str()).copied();
            let place = place.ok_or_else(|| wrong(format!("{module} is no module of the model")))?;
            if modules[place].choice(*b).is_none() {
                let of: Vec<u32> = modules[place].choices.iter().map(|c| c.bits).collect();
                return Err(wrong(format!("{module} can have {of:?} bits, found {b}")));
            }
            bits[place] = Some(*b);
        }
        let bits = bits.into_iter().zip(modules).map(|(bits, module)| {
            let why = || format!("has no bits in the plan {}; add a line for it", self.name);
            bits.ok_or_else(|| Error::Module { module: module.name.clone(), why: why() })
        });
        bits.collect()
    }

    /// The file, `remarks` being comments at its head.
    pub fn text(&self, remarks: &str) -> String {
        let mut text = format!("{FIRST}\n");
        for remark in remarks.lines() {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{}", format!("# {remark}").trim_end());
        }
        for (key, value) in &self.settings {
            let _ = writeln!(text, "set {key} {value}");
        }
        let mut rest = self.bits.as_slice();
        while let Some((module, bits)) = rest.first() {
            let Some((whole, _)) = expert(module) else {
                let _ = writeln!(text, "{module} {bits}");
                rest = &rest[1..];
                continue;
            };
            let own = |(name, _): &&(String, u32)| expert(name).is_some_and(|(e, _)| e == whole);
            let count = rest.iter().take_while(own).count();
            text.push_str(whole);
            for (name, bits) in &rest[..count] {
                let _ = write!(text, " {}={bits}", &name[whole.len() + 1..]);
            }
            text.push('\n');
            rest = &rest[count..];
        }
        text
    }
}
