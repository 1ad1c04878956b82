//! What chips are. Sources: Apple's newsroom and technical specifications (cores, bandwidth), NVIDIA's data sheets (multiprocessors,
//! bandwidth, boost clock); clocks of Apple's GPUs, which Apple does not publish, as measured by others (github.com/philipturner/metal-benchmarks
//! for M1 and M2, notebookcheck.net beyond); 128 lanes a core in all of them, by the same. Thresholds of few rows on Apple's chips
//! are those of the project's first life, where the same roles were measured on M1 Max to M4 Max; kernels have changed since.

use super::Thresholds;
use crate::device::Info;
use serde::Serialize;

/// A chip, or the one that stands for an architecture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Chip {
    /// As the device calls itself.
    pub name: &'static str,
    /// What code is compiled for: `apple7` and on, `sm_80` and on.
    pub architecture: &'static str,
    /// GPU cores, or multiprocessors, of the whole chip.
    pub cores: u32,
    /// Lanes of a core, each of which ends one f32 multiply-add a clock.
    pub lanes: u32,
    /// Of the GPU, in MHz.
    pub clock: u32,
    /// Bytes a second of memory, in GB/s.
    pub bandwidth: f64,
    /// The numbers for it.
    pub thresholds: Thresholds,
}

const fn apple(
    name: &'static str,
    architecture: &'static str,
    cores: u32,
    clock: u32,
    bandwidth: f64,
    few: usize,
) -> Chip {
    let thresholds = Thresholds { few_rows: few, sort_pairs: 4, attention_groups: 4 };
    Chip { name, architecture, cores, lanes: 128, clock, bandwidth, thresholds }
}

const fn nvidia(
    architecture: &'static str,
    name: &'static str,
    cores: u32,
    lanes: u32,
    clock: u32,
    bandwidth: f64,
) -> Chip {
    let thresholds = Thresholds { few_rows: 16, sort_pairs: 4, attention_groups: 4 };
    Chip { name, architecture, cores, lanes, clock, bandwidth, thresholds }
}

/// All chips known, the newest of a family last.
pub const CHIPS: &[Chip] = &[
    apple("Apple M1", "apple7", 8, 1278, 68.25, 8),
    apple("Apple M1 Pro", "apple7", 16, 1296, 204.8, 8),
    apple("Apple M1 Max", "apple7", 32, 1296, 409.6, 8),
    apple("Apple M1 Ultra", "apple7", 64, 1296, 819.2, 8),
    apple("Apple M2", "apple8", 10, 1398, 102.4, 12),
    apple("Apple M2 Pro", "apple8", 19, 1398, 204.8, 12),
    apple("Apple M2 Max", "apple8", 38, 1398, 409.6, 12),
    apple("Apple M2 Ultra", "apple8", 76, 1398, 819.2, 16),
    apple("Apple M3", "apple9", 10, 1398, 102.4, 12),
    apple("Apple M3 Pro", "apple9", 18, 1398, 153.6, 12),
    apple("Apple M3 Max", "apple9", 40, 1398, 409.6, 16),
    apple("Apple M3 Ultra", "apple9", 80, 1398, 819.2, 16),
    apple("Apple M4", "apple9", 10, 1470, 120.0, 12),
    apple("Apple M4 Pro", "apple9", 20, 1578, 273.0, 16),
    apple("Apple M4 Max", "apple9", 40, 1578, 546.0, 16),
    apple("Apple M5", "apple9", 10, 1578, 153.6, 12),
    apple("Apple M5 Pro", "apple9", 20, 1578, 307.0, 16),
    apple("Apple M5 Max", "apple9", 40, 1578, 614.0, 16),
    nvidia("sm_80", "NVIDIA A100 80GB", 108, 64, 1410, 2039.0),
    nvidia("sm_86", "NVIDIA GeForce RTX 3090", 82, 128, 1695, 936.0),
    nvidia("sm_89", "NVIDIA GeForce RTX 4090", 128, 128, 2520, 1008.0),
    nvidia("sm_90", "NVIDIA H200", 132, 128, 1980, 4800.0),
    nvidia("sm_100", "NVIDIA B200", 148, 128, 1965, 8000.0),
    nvidia("sm_120", "NVIDIA GeForce RTX 5090", 170, 128, 2407, 1792.0),
];

impl Chip {
    /// The chip of this name (`Apple M3 Max`, `M3 Max`, `NVIDIA H200`) or architecture (`sm_90`, `sm_90a`), in letters of any size.
    pub fn named(name: &str) -> Option<&'static Self> {
        let wanted = name.trim().to_ascii_lowercase();
        let is = |c: &&Self| {
            let own = c.name.to_ascii_lowercase();
            let short = own.strip_prefix("apple ").or(own.strip_prefix("nvidia ")).unwrap_or(&own);
            own == wanted || short == wanted || (c.is_nvidia() && c.architecture == wanted.trim_end_matches('a'))
        };
        CHIPS.iter().find(is)
    }

    /// What a device is: the chip of its name, else that of its architecture, else the newest that could be like it.
    pub fn of(info: &Info) -> &'static Self {
        let own = Self::named(&info.name).or_else(|| Self::named(&info.architecture));
        let nvidia = info.architecture.starts_with("sm_") || info.architecture == "host";
        // A generation that came later: the newest of its size.
        let size = ["Ultra", "Max", "Pro"].into_iter().find(|size| info.name.ends_with(size)).unwrap_or("");
        let alike = |c: &&Self| {
            c.is_nvidia() == nvidia
                && (nvidia || c.name.ends_with(size) && (!size.is_empty() || c.name.len() == "Apple M1".len()))
        };
        own.or_else(|| CHIPS.iter().rev().find(alike)).unwrap_or(&CHIPS[0])
    }

    /// Whether it is NVIDIA's.
    pub fn is_nvidia(&self) -> bool {
        self.architecture.starts_with("sm_")
    }

    /// Clocks of one lane a second, all lanes together: what instructions are issued in.
    pub fn lane_clocks(&self) -> f64 {
        f64::from(self.cores) * f64::from(self.lanes) * f64::from(self.clock) * 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str, architecture: &str) -> Info {
        let (name, architecture) = (name.to_owned(), architecture.to_owned());
        Info { name, architecture, driver: "1".into(), memory: 1, cores: 1, longest_buffer: 1 }
    }

    #[test]
    fn chips_are_found_by_name_and_by_architecture() {
        assert_eq!(Chip::named("m3 max").map(|c| c.cores), Some(40));
        assert_eq!(Chip::named("Apple M1").map(|c| c.bandwidth), Some(68.25));
        assert_eq!(Chip::named("sm_90a").map(|c| c.name), Some("NVIDIA H200"));
        assert_eq!(Chip::named("apple9"), None);
        assert_eq!(Chip::of(&info("NVIDIA L4", "sm_89")).architecture, "sm_89");
        assert_eq!(Chip::of(&info("Apple M9 Max", "apple12")).name, "Apple M5 Max");
        assert_eq!(Chip::of(&info("Apple M9", "apple12")).name, "Apple M5");
        assert!(Chip::of(&info("NVIDIA X", "sm_200")).is_nvidia());
        for (i, chip) in CHIPS.iter().enumerate() {
            assert_eq!(chip.thresholds, chip.thresholds.within_limits(), "{}", chip.name);
            assert!(CHIPS[..i].iter().all(|c| c.name != chip.name));
        }
    }
}
