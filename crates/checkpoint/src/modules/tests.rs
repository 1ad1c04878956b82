#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use super::{HuggingFace, Modules};
use crate::{Config, DType, Synthetic, TensorInfo, TensorSource};

fn info(name: &str, shape: &[usize]) -> TensorInfo {
    TensorInfo { name: name.into(), dtype: DType::BF16, shape: shape.into() }
}

/// An expert of a stack is a slice of it: gate the first half of the rows, up the second.
#[test]
fn stacked_experts_are_slices() {
    let prefix = "model.layers.0.mlp.experts";
    let source: Arc<dyn TensorSource> = Arc::new(Synthetic::formula(vec![
        info(&format!("{prefix}.gate_up_proj"), &[3, 4, 5]),
        info(&format!("{prefix}.down_proj"), &[3, 5, 2]),
    ]));
    let whole = source.tensor(&format!("{prefix}.gate_up_proj")).unwrap().to_f32().unwrap();
    let down = source.tensor(&format!("{prefix}.down_proj")).unwrap().to_f32().unwrap();
    let modules = HuggingFace::new(source, Config::parse("c", "{}").unwrap());
    for e in 0..3 {
        let matrix = |part: &str, features| {
            let found = modules.linear(&format!("{prefix}.{e}.{part}_proj"), features).unwrap();
            found.build().unwrap().matrix().unwrap()
        };
        assert_eq!(matrix("gate", [2, 5]), whole[e * 20..e * 20 + 10]);
        assert_eq!(matrix("up", [2, 5]), whole[e * 20 + 10..e * 20 + 20]);
        assert_eq!(matrix("down", [5, 2]), down[e * 10..e * 10 + 10]);
    }
    let refused =
        |module: &str, features| modules.linear(&format!("{prefix}.{module}"), features).err().unwrap().to_string();
    assert!(refused("3.up_proj", [2, 5]).contains("has shape [3, 4, 5], so no part 3..4"));
    assert!(refused("0.up_proj", [3, 5]).contains("expected shape [3, 6, 5], found [3, 4, 5]"));
    assert!(refused("0.side_proj", [5, 3]).contains("expected shape [3, 5, 3], found [3, 5, 2]"));
}
