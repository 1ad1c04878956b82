//! The two layouts of a mixture's experts: one tensor per expert, or one stacked tensor for all of them.

use crate::{Error, Result, Tensor, TensorSource};

/// The three matrices of one expert, views of the checkpoint's bytes.
#[derive(Clone, Debug)]
pub struct Expert {
    /// `[intermediate, hidden]`.
    pub gate: Tensor,
    /// `[intermediate, hidden]`.
    pub up: Tensor,
    /// `[hidden, intermediate]`.
    pub down: Tensor,
}

/// Expert `e` of the mixture whose tensors begin with `prefix` (such as `model.layers.3.mlp.experts`): from
/// `{prefix}.{e}.gate_proj.weight` and its siblings, as on the hub, or from the stacked `{prefix}.gate_up_proj`
/// `[experts, 2 x intermediate, hidden]` (rows of gate, then of up) and `{prefix}.down_proj` that transformers 5 keeps.
pub fn expert(source: &dyn TensorSource, prefix: &str, e: usize) -> Result<Expert> {
    let own = |part: &str| format!("{prefix}.{e}.{part}_proj.weight");
    let stacked = format!("{prefix}.gate_up_proj");
    if source.contains(&own("gate")) || !source.contains(&stacked) {
        return Ok(Expert {
            gate: source.tensor(&own("gate"))?,
            up: source.tensor(&own("up"))?,
            down: source.tensor(&own("down"))?,
        });
    }
    let gate_up = source.tensor(&stacked)?.index(e)?;
    let down = source.tensor(&format!("{prefix}.down_proj"))?.index(e)?;
    let (&[both, hidden], &[outputs, inner]) = (gate_up.info.shape.as_slice(), down.info.shape.as_slice()) else {
        let why = format!("expected experts x rows x columns, found experts x {:?}", gate_up.info.shape);
        return Err(Error::invalid(format!("tensor {stacked:?}"), why));
    };
    if both != 2 * inner || hidden != outputs {
        let why = format!(
            "expected [experts, {}, {outputs}] to go with down_proj [experts, {outputs}, {inner}], found [experts, {both}, {hidden}]",
            2 * inner
        );
        return Err(Error::invalid(format!("tensor {stacked:?}"), why));
    }
    let named = |mut tensor: Tensor, part: &str| {
        tensor.info.name = own(part);
        tensor
    };
    Ok(Expert {
        gate: named(gate_up.rows(0..inner)?, "gate"),
        up: named(gate_up.rows(inner..both)?, "up"),
        down: named(down, "down"),
    })
}
