//! Products of a few rows for GPUs with tensor cores: kernels that read a matrix once, all of the device at the same time.

use super::{Book, CodeMap, Template, WeightArgs, WeightType, arguments, kernel};
use marlin_checkpoint::weight::Codebook;

/// Outputs and inputs of a block.
pub const STREAM_BLOCK: usize = 128;

arguments! {
    /// Arguments of [`TrellisStream`].
    StreamArgs {
        /// 2 to these powers, which compilers must not know.
        powers: [u32; 8],
        /// Outputs of the matrix.
        rows: u32,
        /// Inputs of the matrix.
        cols: u32,
        /// Rows of x.
        batch: u32,
        /// Groups of the grid, each of at least one block.
        groups: u32,
        /// Values of a row of x, where it comes as it is.
        features: u32,
        /// Values of a row of y.
        outputs: u32,
        /// Whether inputs are scaled.
        scaled_in: u32,
        /// Whether outputs are.
        scaled_out: u32,
        /// What sums of codes are multiplied with.
        factor: f32,
        /// What is added for each input.
        offset: f32,
    }
}

arguments! {
    /// Arguments of [`PackRows`].
    PackArgs {
        /// Inputs of the matrix.
        cols: u32,
        /// Values of a row of x.
        features: u32,
        /// Rows of x.
        batch: u32,
        /// Rows that are packed, those that are not there as zeros.
        rows: u32,
        /// Whether inputs are scaled.
        scaled: u32,
        /// As in [`StreamArgs`].
        factor: f32,
        /// As in [`StreamArgs`].
        offset: f32,
    }
}

/// How inputs are given to tensor cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Parts {
    /// Fixed-point numbers of 16 bits, as two bytes.
    Bytes,
    /// The sum of two halves.
    Halves,
}

impl Template for Parts {
    fn cxx(&self) -> String {
        match self {
            Self::Bytes => "BYTES",
            Self::Halves => "HALVES",
        }
        .into()
    }
    fn tag(&self) -> String {
        self.cxx().to_lowercase()
    }
}

impl Parts {
    /// Words of 16 inputs of a row.
    fn words(self) -> usize {
        if self == Self::Bytes { 8 } else { 16 }
    }

    /// Words of `cols` inputs of `rows` rows, and floats of what goes with them.
    pub fn sizes(self, cols: usize, rows: usize) -> [usize; 2] {
        let blocks = cols.div_ceil(STREAM_BLOCK);
        [blocks * rows * 8 * self.words(), blocks * rows * 4]
    }

    /// What sums of codes are multiplied with, and what is added for each input.
    pub fn affine(self) -> [f32; 2] {
        // The halves 0x1EEE and 0xC931 of the codebook, whose sum of bytes is added to 1024.
        const FACTOR: f32 = 0.006_767_273;
        match self {
            Self::Bytes => [FACTOR, 1024.0 * FACTOR - 10.382_812_5],
            Self::Halves => [1.0, 0.0],
        }
    }
}

/// Floats that a group sums outputs in.
fn part_size(m: u32) -> u32 {
    4 * m.min(4) * 136
}

kernel! {
    /// Several rows of x for kernels that take them packed. Grid `[ceil(cols / 512), rows]`.
    PackRows = "pack_rows" in "stream.h" {
        /// How.
        parts: Parts,
        /// Size of the rotation: 1 or 128.
        block: u32,
    }
    threads |_| 128;
    shared |_| Vec::new();
    buffers { x: read f32, scale: read f32, packed: write u32, info: write f32 }
    arguments PackArgs
}

kernel! {
    /// A few rows times a trellis, with what stands around it. Grid `[groups]`; `m` tickets for each block of outputs, all
    /// of them 0, and sums of `256 * m * groups` values.
    TrellisStream = "trellis_stream" in "trellis_stream.h" {
        /// Bits of a code, 1 to 8.
        bits: u32,
        /// The codebook.
        book: Book,
        /// How inputs are given to tensor cores.
        parts: Parts,
        /// Rows of x: 1, which is packed by the kernel itself, or 4, 8, 16.
        m: u32,
        /// Pieces of words that are on their way.
        ring: u32,
        /// Blocks of inputs that a group has at most, of one row.
        blocks: u32,
        /// Size of the inputs' rotation, if there is one row: 1 or 128.
        rotate_in: u32,
        /// Size of the outputs' rotation: 1 or 128.
        rotate_out: u32,
        /// Whether a bias is added.
        bias: bool,
    }
    threads |_| 256;
    shared |k| {
        let inputs = if k.m == 1 { k.blocks as usize * (8 * k.parts.words() + 4) } else { 0 };
        vec![("uint", (8 * k.ring * 4 * (16 * k.bits + 8) + part_size(k.m)) as usize + inputs)]
    };
    buffers {
        words: read u32, x: read f32, scale_in: read f32, packed: read u32, info: read f32, scale_out: read f32,
        biases: read f32, sums: write f32, tickets: write u32, y: write f32
    }
    arguments StreamArgs
}

impl TrellisStream {
    /// The kernel for `m` rows of a trellis.
    pub fn of(bits: u32, book: Book, m: u32, [rotate_in, rotate_out]: [u32; 2], bias: bool) -> Self {
        let parts = if book.0 == Codebook::Mul1 { Parts::Bytes } else { Parts::Halves };
        let ring = [8, 5, 4, 3, 2, 2, 2, 2][bits as usize - 1];
        let blocks = match parts {
            _ if m > 1 => 1,
            Parts::Bytes => {
                if bits < 8 {
                    56
                } else {
                    40
                }
            }
            Parts::Halves => {
                if bits < 7 {
                    24
                } else {
                    16
                }
            }
        };
        let rotate_in = if m > 1 { 1 } else { rotate_in };
        Self { bits, book, parts, m, ring, blocks, rotate_in, rotate_out, bias }
    }
}

arguments! {
    /// Arguments of [`TrellisExperts`].
    ExpertStreamArgs {
        /// What all such kernels take; of the matrices, one.
        s: StreamArgs,
        /// Pairs of a row and a matrix.
        pairs: u32,
        /// Pairs that one row of x has.
        share: u32,
        /// Words of a matrix.
        stack_words: u32,
    }
}

kernel! {
    /// Pairs of a row and an expert, each times its trellis, with what stands around it. Grid `[groups]`; a ticket for each block of
    /// outputs of each pair, all of them 0, and sums of `256 * groups` values.
    TrellisExperts = "trellis_experts" in "trellis_stream.h" {
        /// Bits of a code, 1 to 8.
        bits: u32,
        /// The codebook.
        book: Book,
        /// How inputs are given to tensor cores.
        parts: Parts,
        /// Pieces of words that are on their way.
        ring: u32,
        /// Blocks that a group has at most.
        blocks: u32,
        /// Size of the inputs' rotation: 1 or 128.
        rotate_in: u32,
        /// Size of the outputs' rotation: 1 or 128.
        rotate_out: u32,
        /// Whether a pair's input is a gate's row and, after its SiLU, what that is for.
        gated: bool,
    }
    threads |_| 256;
    shared |k| {
        let inputs = k.blocks as usize * (8 * k.parts.words() + 4);
        vec![("uint", (8 * k.ring * 4 * (16 * k.bits + 8) + part_size(1)) as usize + inputs)]
    };
    buffers {
        words: read u32, x: read f32, scale_in: read f32, scale_out: read f32, index: read u32, places: read u32, sums: write f32,
        tickets: write u32, y: write f32
    }
    arguments ExpertStreamArgs
}

impl TrellisExperts {
    /// The kernel for such trellises.
    pub fn of(bits: u32, book: Book, [rotate_in, rotate_out]: [u32; 2], gated: bool) -> Self {
        let TrellisStream { parts, ring, blocks, .. } =
            TrellisStream::of(bits, book, 1, [rotate_in, rotate_out], false);
        Self { bits, book, parts, ring, blocks, rotate_in, rotate_out, gated }
    }
}

arguments! {
    /// Arguments of [`GroupedStream`].
    GroupedStreamArgs {
        /// What all such kernels take.
        s: StreamArgs,
        /// The weight.
        w: WeightArgs,
    }
}

kernel! {
    /// Several rows of x for [`GroupedStream`]. Grid `[ceil(cols / 512), rows]`.
    PackForCodes = "pack_rows_for_codes" in "grouped_stream.h" {
        /// The weight's type.
        weight: WeightType,
    }
    threads |_| 128;
    shared |_| Vec::new();
    buffers { x: read f32, packed: write u32, info: write f32 }
    arguments PackArgs
}

kernel! {
    /// A few rows times grouped codes of 2, 4 or 8 bits. Grid, tickets and sums as for [`TrellisStream`].
    GroupedStream = "grouped_stream" in "grouped_stream.h" {
        /// The weight's type.
        weight: WeightType,
        /// Groups that 32 inputs may be of: 1 or 2.
        pieces: u32,
        /// Rows of x: 1, which is packed by the kernel itself, or 4, 8, 16.
        m: u32,
        /// Blocks of words that are on their way.
        ring: u32,
        /// Blocks of inputs that a group has at most, of one row.
        blocks: u32,
        /// Whether a bias is added.
        bias: bool,
    }
    threads |_| 256;
    shared |k| {
        let WeightType::Grouped { bits, .. } = k.weight else { return Vec::new() };
        let line = 4 * bits + if bits == 8 { 4 } else { 0 };
        let inputs = if k.m == 1 { k.blocks * 80 } else { 0 };
        vec![("uint", (8 * k.ring * 16 * line + k.m.min(4) * 136 + inputs) as usize)]
    };
    buffers {
        words: read u32, factors: read u8, x: read f32, packed: read u32, info: read f32, biases: read f32, sums: write f32,
        tickets: write u32, y: write f32
    }
    arguments GroupedStreamArgs
}

impl GroupedStream {
    /// The kernel for `m` rows of such a weight, if there is one.
    pub fn of(weight: WeightType, args: &WeightArgs, m: u32, bias: bool) -> Option<Self> {
        let WeightType::Grouped { bits, map, vector, .. } = weight else { return None };
        let known = match map {
            CodeMap::Integers => [2, 4, 8].contains(&bits),
            CodeMap::E2m1 => bits == 4,
            _ => false,
        };
        let [a, b, c, d, e] =
            [args.scale, args.outer, args.zero, args.minimum, args.minimum_outer].map(|f| f.col_shift);
        let pieces = if [a, b, c, d, e].contains(&4) { 2 } else { 1 };
        let (ring, blocks) = match bits {
            2 => (8, 48),
            4 => (4, 48),
            _ => (2, 36),
        };
        let blocks = if m > 1 { 1 } else { blocks };
        (known && (vector == 4 || vector == bits) && args.words.is_multiple_of(4)).then_some(Self {
            weight,
            pieces,
            m,
            ring,
            blocks,
            bias,
        })
    }

    /// Words of `cols` packed inputs of `rows` rows, and floats of what goes with them.
    pub fn sizes(cols: usize, rows: usize) -> [usize; 2] {
        let blocks = cols.div_ceil(STREAM_BLOCK);
        [blocks * rows * 64, blocks * rows * 16]
    }
}
