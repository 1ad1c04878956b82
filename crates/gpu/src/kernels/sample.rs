//! The most probable token, and tokens that stay on the device.

use super::{CountArgs, arguments, kernel};

arguments! {
    /// Arguments of [`GreedyPart`] and [`GreedyJoin`], and of what draws.
    GreedyArgs {
        /// Logits of a row.
        cols: u32,
        /// How many of them take part.
        count: u32,
        /// Logits of a part.
        each: u32,
        /// Parts.
        parts: u32,
    }
}

kernel! {
    /// The best of a part of each row: token, its logit, the second logit, the sum of exponentials relative to the best.
    /// Grid `[parts, rows]`.
    GreedyPart = "greedy_part" in "sample.h" {}
    threads |_| 256;
    shared |_| vec![("float", 24), ("uint", 8)];
    buffers { logits: read f32, found: write u32 }
    arguments GreedyArgs
}

kernel! {
    /// Of the whole row: token, how much less than the best its logit is, the lead over the second, the sum of exponentials. Grid
    /// `[rows]`.
    GreedyJoin = "greedy_join" in "sample.h" {}
    threads |_| 32;
    shared |_| Vec::new();
    buffers { found: read u32, chosen: write u32 }
    arguments GreedyArgs
}

kernel! {
    /// Puts samples, `which` of them, in place of tokens. Grid `[ceil(count / 256)]`.
    TakeTokens = "take_tokens" in "sample.h" {}
    threads |_| 256;
    shared |_| Vec::new();
    buffers { which: read u32, chosen: read u32, tokens: write u32 }
    arguments CountArgs
}

kernel! {
    /// Copies. Grid `[ceil(count / 256)]`.
    CopyWords = "copy_words" in "sample.h" {}
    threads |_| 256;
    shared |_| Vec::new();
    buffers { x: read u32, y: write u32 }
    arguments CountArgs
}
