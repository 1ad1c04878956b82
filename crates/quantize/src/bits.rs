//! Bits by role, as the command line writes them.

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::Role;

/// Bits of a weight: one number for all, or numbers for some roles and perhaps one for the rest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bits {
    all: Option<f64>,
    roles: BTreeMap<Role, f64>,
}

impl Bits {
    /// The same for all.
    pub fn uniform(bits: f64) -> Self {
        Self { all: Some(bits), roles: BTreeMap::new() }
    }

    /// Bits of a role; `None` where nothing was said of it. The output projection has its own number or none.
    pub fn of(&self, role: Role) -> Option<f64> {
        let rest = if role == Role::Head { None } else { self.all };
        self.roles.get(&role).copied().or(rest)
    }

    /// The number for all that have none of their own.
    pub fn all(&self) -> Option<f64> {
        self.all
    }

    /// The numbers of roles alone.
    pub fn roles(&self) -> Self {
        Self { all: None, roles: self.roles.clone() }
    }

    /// Whether a role has a number of its own.
    pub fn has_own(&self, role: Role) -> bool {
        self.roles.contains_key(&role)
    }

    /// The same with `head` bits for the output projection, unless it has some already.
    pub fn with_head(mut self, head: Option<f64>) -> Self {
        if let Some(head) = head {
            self.roles.entry(Role::Head).or_insert(head);
        }
        self
    }

    /// Whether roles differ.
    pub fn by_role(&self) -> bool {
        !self.roles.is_empty()
    }
}

impl std::fmt::Display for Bits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all = self.all.map(|bits| bits.to_string());
        let roles = self.roles.iter().map(|(role, bits)| format!("{}={bits}", role.name()));
        f.write_str(&all.into_iter().chain(roles).collect::<Vec<_>>().join(","))
    }
}

impl FromStr for Bits {
    type Err = String;

    /// `3.5`, `attn=8,ffn_gate=4,ffn_down=6`, or both: `4,attn=8`. `ffn` stands for its three parts.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            let bits = text.parse().ok().filter(|b: &f64| (1.0..=16.0).contains(b));
            bits.ok_or_else(|| format!("expected bits from 1 to 16, found {text:?}"))
        };
        let mut bits = Self::default();
        for part in text.split(',') {
            match part.split_once('=') {
                None if bits.all.is_some() => return Err(format!("{part:?} is a second number for all modules")),
                None => bits.all = Some(number(part.trim())?),
                Some((name, value)) => {
                    let roles = Role::named(name.trim()).ok_or_else(|| {
                        format!("{name:?} is no role; expected attn, ffn, ffn_gate, ffn_up, ffn_down or head")
                    })?;
                    for role in roles {
                        if bits.roles.insert(role, number(value.trim())?).is_some() {
                            return Err(format!("{part:?} gives {} bits a second time", role.name()));
                        }
                    }
                }
            }
        }
        Ok(bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_roles() {
        let bits: Bits = "4,attn=8,ffn_down=6".parse().unwrap();
        let all = [Role::Attention, Role::Gate, Role::Up, Role::Down, Role::Head];
        assert_eq!(all.map(|role| bits.of(role)), [Some(8.0), Some(4.0), Some(4.0), Some(6.0), None]);
        let bits: Bits = "ffn=3,head=6".parse().unwrap();
        assert_eq!(all.map(|role| bits.of(role)), [None, Some(3.0), Some(3.0), Some(3.0), Some(6.0)]);
        assert_eq!("3.5".parse::<Bits>(), Ok(Bits::uniform(3.5)));
        assert_eq!(Bits::uniform(4.0).with_head(Some(6.0)).to_string(), "4,head=6");
        let wrong = [
            ("router=3", "is no role"),
            ("x", "expected bits"),
            ("0", "from 1 to 16"),
            ("3,4", "second"),
            ("attn=8,attn=4", "\"attn=4\" gives attn bits a second time"),
            ("ffn=3,ffn_up=4", "gives ffn_up bits a second time"),
        ];
        for (bad, why) in wrong {
            assert!(bad.parse::<Bits>().unwrap_err().contains(why), "{bad}");
        }
    }
}
