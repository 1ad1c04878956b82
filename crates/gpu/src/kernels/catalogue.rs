//! One instance of everything, for the compilers that check.

use super::*;
use crate::source::Entry;
use marlin_checkpoint::weight::Codebook;

/// Every kernel in every variant that differs in what it compiles to: all types of weights and factors, all numbers of
/// bits, all sizes of rotations.
pub fn catalogue() -> Vec<Entry> {
    let mut all = Vec::new();
    for width in [100, 333, 1536, 4096, 5001] {
        for residual in [false, true] {
            all.push(RmsNorm::of(width, residual).entry());
        }
    }
    let plain = Around { block: 1, output: false, scale: false, order: false, bias: false, indexed: false };
    for block in [1, 16, 32, 64, 128, 512, 1024] {
        for output in [false, true] {
            all.push(Around { block, output, scale: true, bias: output, ..plain }.entry());
        }
    }
    all.push(Around { order: true, ..plain }.entry());
    all.push(Around { block: 128, scale: true, indexed: true, ..plain }.entry());
    all.extend([Swiglu {}.entry(), Add {}.entry(), Gated {}.entry(), Columns {}.entry(), Gather {}.entry()]);
    for flag in [false, true] {
        all.extend([Combine { base: flag }.entry(), Rope { interleaved: flag }.entry()]);
    }
    all.push(AttentionJoin {}.entry());
    for element in [Element::F32, Element::F16, Element::Bf16, Element::Int8, Element::Fp8] {
        let heads = Attention {
            element,
            width: 8,
            simds: 4,
            lanes: 16,
            heads: 4,
            keys: 1,
            values: 1,
            latent: false,
            split: true,
        };
        all.push(heads.entry());
        all.push(Attention { split: false, ..heads }.entry());
        all.push(Attention { width: 1, lanes: 32, heads: 1, keys: 3, values: 3, ..heads }.entry());
        all.push(Attention { lanes: 32, heads: 2, keys: 3, values: 2, latent: true, ..heads }.entry());
        all.push(
            Attention { simds: 2, lanes: 32, heads: 4, keys: 3, values: 2, latent: true, split: false, ..heads }
                .entry(),
        );
        for (q_norm, rope) in [(false, Turn::No), (true, Turn::Halves), (false, Turn::Neighbours)] {
            all.push(PlaceHeads { element, each: 4, q_norm, k_norm: q_norm, rope, latent: false }.entry());
        }
        all.push(PlaceHeads { element, each: 18, q_norm: false, k_norm: false, rope: Turn::No, latent: true }.entry());
        all.push(PlaceLatent { element, each: 3, rope: Turn::Halves }.entry());
        all.push(PlaceLatent { element, each: 3, rope: Turn::Neighbours }.entry());
    }
    for element in [Element::F32, Element::F16, Element::Bf16] {
        for rope in [Turn::No, Turn::Halves, Turn::Neighbours] {
            all.push(LatentIn { element, rope }.entry());
        }
        all.extend([1, 8].map(|width| LatentOut { element, width }.entry()));
    }
    for sigmoid in [false, true] {
        for groups in [false, true] {
            all.push(Route { each: 2, sigmoid, bias: groups, groups }.entry());
        }
    }
    all.push(Argmax { simds: 8 }.entry());
    all.extend([GreedyPart {}.entry(), GreedyJoin {}.entry(), TakeTokens {}.entry(), CopyWords {}.entry()]);
    all.extend([DrawCount {}.entry(), DrawGather {}.entry(), DrawChoose { simds: 8 }.entry()]);
    all.push(DrawChoose { simds: 32 }.entry());
    all.extend([SwigluPairs {}.entry(), SortPairs {}.entry(), ExpertTiles {}.entry()]);
    for weight in weight_types() {
        all.push(DecodeRows { weight }.entry());
        all.push(Gemv { weight, m: 1, r: 4, simds: 4, bias: true, experts: false }.entry());
        all.push(Gemm { weight, bias: true }.entry());
        all.push(SimpleLinear { weight, bias: true }.entry());
        all.push(PanelRows { weight }.entry());
    }
    for weight in [weight_types()[0], weight_types()[8]] {
        all.push(Gemv { weight, m: 4, r: 2, simds: 4, bias: false, experts: false }.entry());
        all.push(Gemv { weight, m: 1, r: 4, simds: 4, bias: false, experts: true }.entry());
        all.push(ExpertGemm { weight }.entry());
    }
    for block in [1, 128] {
        for width in [100, 4096, 12288] {
            all.extend([ToHalves::of(width, block).entry(), SwigluToHalves::of(width, block).entry()]);
            for (second, outputs) in [(Second::No, 1), (Second::Values, 2), (Second::Products, 3)] {
                all.push(NormToHalves::of(width, block, second, outputs).entry());
            }
        }
        all.extend([false, true].map(|bias| FinishProducts { block, bias }.entry()));
    }
    for bits in 1..=8 {
        // Bits and codebooks are independent of each other.
        let book = Book([Codebook::Mul1, Codebook::Mcg, Codebook::ThreeInst][bits as usize % 3]);
        all.push(TrellisGemv { bits, book, m: 1, tiles: 2, simds: 8, experts: bits == 3 }.entry());
        all.push(TrellisGemm { bits, book }.entry());
        all.push(SimpleTrellis { bits, book }.entry());
        all.push(PanelTrellis { bits, book }.entry());
        all.push(ExpertTrellisGemm { bits, book }.entry());
    }
    all.push(TrellisGemv { bits: 3, book: Book(Codebook::Mul1), m: 4, tiles: 1, simds: 8, experts: false }.entry());
    all
}

/// The same of what needs tensor cores.
pub fn tensor_catalogue() -> Vec<Entry> {
    let mut all = Vec::new();
    for element in [Element::F32, Element::F16, Element::Bf16, Element::Int8, Element::Fp8] {
        for width in [1, 8] {
            all.extend([false, true].map(|latent| ContextHalves { element, width, latent }.entry()));
            all.push(ExpandedHalves { element, width }.entry());
        }
    }
    for (key, value, rope) in [
        (64, 64, Turn::No),
        (128, 128, Turn::No),
        (192, 128, Turn::Halves),
        (256, 256, Turn::No),
        (256, 256, Turn::Neighbours),
    ] {
        all.extend(AttentionTiles::of(key, value, rope).map(|k| k.entry()));
    }
    for parts in [Parts::Bytes, Parts::Halves] {
        all.extend([1, 128].map(|block| PackRows { parts, block }.entry()));
    }
    for bits in 1..=8 {
        let book = Book([Codebook::Mul1, Codebook::Mcg, Codebook::ThreeInst][bits as usize % 3]);
        all.push(TrellisStream::of(bits, Book(Codebook::Mul1), 1, [128, 128], false).entry());
        all.push(TrellisStream::of(bits, book, 4, [1, 1], true).entry());
    }
    all.push(TrellisStream::of(3, Book(Codebook::ThreeInst), 1, [128, 128], false).entry());
    let args = WeightArgs { words: 4, ..WeightArgs::default() };
    let halves = WeightArgs { scale: FactorArgs { col_shift: 4, ..FactorArgs::default() }, ..args };
    for weight in weight_types() {
        let each = [GroupedStream::of(weight, &args, 1, true), GroupedStream::of(weight, &halves, 4, false)];
        if each[0].is_some() {
            all.push(PackForCodes { weight }.entry());
        }
        all.extend(each.into_iter().flatten().map(|k| k.entry()));
    }
    for (block, scale, gated, spread) in [(1, false, false, true), (128, true, true, false)] {
        all.push(PairHalves { block, scale, gated, spread }.entry());
    }
    for bits in 1..=8 {
        let book = Book([Codebook::Mul1, Codebook::Mcg, Codebook::ThreeInst][bits as usize % 3]);
        let (block, scale) = if bits % 2 == 0 { (1, false) } else { (128, true) };
        all.push(TrellisExperts::of(bits, book, [block, block], scale).entry());
        all.push(ExpertTrellisMma { bits, book, block, scale }.entry());
    }
    all.extend(weight_types().into_iter().map(|weight| ExpertRowsMma { weight }.entry()));
    all.extend([8, 16].map(|m| TrellisStream::of(3, Book(Codebook::Mul1), m, [1, 128], false).entry()));
    all
}

/// Types of weights, each way of storing codes and factors at least once.
pub fn weight_types() -> Vec<WeightType> {
    let grouped = |bits, map, vector, scale, outer, zero, minimum, minimum_outer| WeightType::Grouped {
        bits,
        map,
        vector,
        scale,
        outer,
        divide: outer == Factor::F32,
        zero,
        minimum,
        minimum_outer,
    };
    let mut all = Vec::new();
    for element in [Element::F32, Element::F16, Element::Bf16] {
        all.extend([true, false].map(|vector| WeightType::Dense { element, vector }));
    }
    use Factor::{Bf16, E4m3, E8m0, F16, F32, I8, None, U4, U8};
    for (bits, vector) in [(2, 2), (3, 1), (4, 4), (5, 1), (6, 2), (7, 1), (8, 4)] {
        all.push(grouped(bits, CodeMap::Integers, vector, F16, None, None, F16, None));
    }
    all.push(grouped(4, CodeMap::E2m1, 4, F16, None, None, None, None));
    all.push(grouped(4, CodeMap::E2m1, 4, E4m3, F32, None, None, None));
    all.push(grouped(4, CodeMap::E2m1, 4, E8m0, None, None, None, None));
    all.push(grouped(8, CodeMap::E4m3, 4, F32, None, None, None, None));
    all.push(grouped(8, CodeMap::E5m2, 4, Bf16, None, None, None, None));
    all.push(grouped(4, CodeMap::Table, 4, I8, F16, None, None, None));
    all.push(grouped(4, CodeMap::Integers, 4, U8, F16, None, U8, F16));
    all.push(grouped(4, CodeMap::Integers, 1, F16, None, U4, None, None));
    all.push(grouped(3, CodeMap::Integers, 1, F32, None, U8, None, None));
    all
}
