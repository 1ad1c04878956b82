//! Values of options.

use clap::ValueEnum;
use clap::builder::{PossibleValuesParser, TypedValueParser};
pub use marlin_cpu::KvType;

/// A number of tokens: `4096`, `32K`, `1M` (K and M are powers of 1024).
pub fn tokens(text: &str) -> Result<usize, String> {
    let wrong = || format!("expected a number of tokens such as 4096 or 32K, found {text:?}");
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1 << 10),
        Some((at, 'm' | 'M')) => (&text[..at], 1 << 20),
        _ => (text, 1),
    };
    digits.parse::<usize>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(wrong)
}

/// A number of tokens of at least 1.
pub fn some_tokens(text: &str) -> Result<usize, String> {
    match tokens(text)? {
        0 => Err("expected at least 1, found 0".to_owned()),
        n => Ok(n),
    }
}

/// Most threads that are accepted: more than any processor has, and few enough to be started.
const MAX_THREADS: usize = 1024;

/// A number of threads, 0 for as many as there are physical cores.
pub fn threads(text: &str) -> Result<usize, String> {
    let wrong = || format!("expected a number of threads from 0 to {MAX_THREADS}, found {text:?}");
    text.parse().ok().filter(|n| *n <= MAX_THREADS).ok_or_else(wrong)
}

/// `A..B`, not empty.
pub fn range(text: &str) -> Result<std::ops::Range<usize>, String> {
    let wrong = || format!("expected A..B such as 0..8, with A less than B; found {text:?}");
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    let range = from.parse().map_err(|_| wrong())?..to.parse().map_err(|_| wrong())?;
    if range.is_empty() { Err(wrong()) } else { Ok(range) }
}

/// `ID=BIAS`; `-inf` forbids a token.
pub fn logit_bias(text: &str) -> Result<(u32, f32), String> {
    let wrong = || format!("expected ID=BIAS such as 42=-1.5 or 42=-inf, found {text:?}");
    let (id, bias) = text.split_once('=').ok_or_else(wrong)?;
    Ok((id.trim().parse().map_err(|_| wrong())?, bias.trim().parse().map_err(|_| wrong())?))
}

/// The device.
pub fn device(text: &str) -> Result<Device, String> {
    match text {
        "auto" => Ok(Device::Auto),
        "cpu" => Ok(Device::Cpu),
        "cuda" => Ok(Device::Cuda),
        "metal" => Ok(Device::Metal),
        _ => Err(format!("expected auto, cpu, cuda or metal; found {text:?}")),
    }
}

/// Where models run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The GPU where there is one that can be used, else the processor.
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// The GPU of a Mac.
    Metal,
}

/// Element type of the KV memory: every one that the backend has.
pub fn kv_type() -> impl TypedValueParser<Value = KvType> {
    let named = |name: String| KvType::ALL.into_iter().find(|t| t.name() == name).unwrap_or_default();
    PossibleValuesParser::new(KvType::ALL.map(KvType::name)).map(named)
}

/// `on` or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Yes.
    On,
    /// No.
    Off,
}

impl Switch {
    /// As a truth value.
    pub fn is_on(self) -> bool {
        self == Self::On
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_biases() {
        assert_eq!(["7", "32K", "1m"].map(|t| tokens(t).unwrap()), [7, 32_768, 1 << 20]);
        for bad in ["", "K", "-1", "3.5K", "99999999999999999999", "é"] {
            assert!(tokens(bad).unwrap_err().contains(bad), "{bad}");
        }
        assert!(some_tokens("0").is_err());
        assert_eq!((threads("0"), threads("1024")), (Ok(0), Ok(1024)));
        for bad in ["1025", "100000", "-1", "many"] {
            assert!(threads(bad).unwrap_err().contains("from 0 to 1024"), "{bad}");
        }
        assert_eq!(logit_bias("42=-1.5"), Ok((42, -1.5)));
        assert_eq!(logit_bias("7=-inf"), Ok((7, f32::NEG_INFINITY)));
        assert_eq!(range("2..5"), Ok(2..5));
        assert!(range("5..5").is_err() && range("3").is_err() && range("a..b").is_err());
        assert!(logit_bias("x=1").is_err() && logit_bias("42").is_err());
        assert!(matches!(device("metal"), Ok(Device::Metal)));
        assert!(device("tpu").unwrap_err().contains("tpu"));
    }
}
