//! What a module is for, by its name.

/// What a linear does in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A projection of attention.
    Attention,
    /// `gate_proj` of an MLP or expert.
    Gate,
    /// `up_proj` of an MLP or expert.
    Up,
    /// `down_proj` of an MLP or expert.
    Down,
    /// The output projection.
    Head,
}

impl Role {
    /// The role of the linear called `module`; `None` for what is kept as it is: embeddings, routers, the gate of a shared
    /// expert, and the latent projection `kv_b_proj`.
    pub fn of(module: &str) -> Option<Self> {
        Some(match module.rsplit('.').next()? {
            "q_proj" | "k_proj" | "v_proj" | "o_proj" | "q_a_proj" | "q_b_proj" | "kv_a_proj_with_mqa" => {
                Self::Attention
            }
            "gate_proj" => Self::Gate,
            "up_proj" => Self::Up,
            "down_proj" => Self::Down,
            "lm_head" => Self::Head,
            _ => return None,
        })
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attention => "attn",
            Self::Gate => "ffn_gate",
            Self::Up => "ffn_up",
            Self::Down => "ffn_down",
            Self::Head => "head",
        }
    }

    /// The roles that `name` means: one, or the three of `ffn`.
    pub fn named(name: &str) -> Option<Vec<Self>> {
        let all = [Self::Attention, Self::Gate, Self::Up, Self::Down, Self::Head];
        match name {
            "ffn" => Some(vec![Self::Gate, Self::Up, Self::Down]),
            name => all.into_iter().find(|role| role.name() == name).map(|role| vec![role]),
        }
    }
}

/// The number of the layer that `name`, a module's or tensor's, belongs to.
pub(crate) fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

/// How many linears of its layer, one behind the other, a linear's input has gone through: those with the same number can be
/// quantised together when inputs are to be those of quantised linears.
pub(crate) fn depth(module: &str) -> usize {
    match module.rsplit('.').next().unwrap_or_default() {
        "q_b_proj" => 1,
        "o_proj" => 2,
        "gate" | "shared_expert_gate" | "gate_proj" | "up_proj" => 3,
        "down_proj" => 4,
        _ => 0,
    }
}

/// Which input of its layer a linear has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// That of the module named here.
    Of(String),
    /// A routed expert's: of `{experts}.{index}.{part}`, where gate and up share `gate_proj`.
    Expert {
        /// Up to `.experts`.
        experts: String,
        /// Which expert.
        index: usize,
        /// `gate_proj` or `down_proj`.
        part: &'static str,
    },
}

impl Input {
    /// The input of the linear called `module`.
    pub(crate) fn of(module: &str) -> Self {
        let (rest, last) = module.rsplit_once('.').unwrap_or(("", module));
        let (owner, index) = rest.rsplit_once('.').unwrap_or(("", rest));
        if let (true, Ok(index)) = (owner.ends_with(".experts"), index.parse()) {
            let part = if last == "down_proj" { "down_proj" } else { "gate_proj" };
            return Self::Expert { experts: owner.to_owned(), index, part };
        }
        // A shared expert sees what the router sees.
        let shared = matches!(index, "shared_experts" | "shared_expert");
        Self::Of(match last {
            "k_proj" | "v_proj" => format!("{rest}.q_proj"),
            "kv_a_proj_with_mqa" => format!("{rest}.q_a_proj"),
            "gate_proj" | "up_proj" if shared => format!("{owner}.gate"),
            "shared_expert_gate" => format!("{rest}.gate"),
            "up_proj" => format!("{rest}.gate_proj"),
            _ => module.to_owned(),
        })
    }

    /// The stack that MLX keeps `module`, a routed expert's, in: `model.layers.3.mlp.switch_mlp.up_proj`.
    pub(crate) fn stack(&self, module: &str) -> Option<String> {
        let Self::Expert { experts, .. } = self else { return None };
        let part = module.rsplit('.').next()?;
        Some(format!("{}switch_mlp.{part}", experts.strip_suffix("experts")?))
    }

    /// The name its moments are kept under.
    pub(crate) fn key(&self) -> String {
        match self {
            Self::Of(module) => module.clone(),
            Self::Expert { experts, index, part } => format!("{experts}.{index}.{part}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_has_no_role() {
        let layer = "model.layers.3";
        for kept in ["mlp.gate", "mlp.shared_expert_gate", "self_attn.kv_b_proj", "input_layernorm"] {
            assert_eq!(Role::of(&format!("{layer}.{kept}")), None, "{kept}");
        }
        assert_eq!(Role::of("model.embed_tokens"), None);
        assert_eq!(Role::of("model.layers.3.mlp.experts.7.gate_proj"), Some(Role::Gate));
        assert_eq!(Role::of("lm_head"), Some(Role::Head));
        assert_eq!(Role::named("ffn"), Some(vec![Role::Gate, Role::Up, Role::Down]));
        assert_eq!(Role::named("router"), None);
    }

    #[test]
    fn depths_follow_the_data() {
        let depths = |names: &[&str]| names.iter().map(|n| depth(&format!("model.layers.3.{n}"))).collect::<Vec<_>>();
        let attention = ["self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"];
        assert_eq!(depths(&attention), [0, 0, 2, 3, 4]);
        let latent = ["self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa", "self_attn.q_b_proj", "self_attn.o_proj"];
        assert_eq!(depths(&latent), [0, 0, 1, 2]);
        assert_eq!(depths(&["mlp.gate", "mlp.experts.7.gate_proj", "mlp.shared_experts.down_proj"]), [3, 3, 4]);
    }

    #[test]
    fn modules_that_see_the_same_share_their_input() {
        let key = |module: &str| Input::of(&format!("model.layers.3.{module}")).key();
        assert_eq!(key("self_attn.v_proj"), key("self_attn.q_proj"));
        assert_eq!(key("self_attn.kv_a_proj_with_mqa"), key("self_attn.q_a_proj"));
        assert_ne!(key("self_attn.o_proj"), key("self_attn.q_proj"));
        assert_eq!(key("mlp.up_proj"), key("mlp.gate_proj"));
        assert_ne!(key("mlp.down_proj"), key("mlp.gate_proj"));
        assert_eq!(key("mlp.shared_experts.up_proj"), "model.layers.3.mlp.gate");
        assert_eq!(key("mlp.shared_expert.gate_proj"), key("mlp.shared_expert_gate"));
        assert_eq!(key("mlp.shared_experts.down_proj"), "model.layers.3.mlp.shared_experts.down_proj");
        assert_eq!(key("mlp.experts.11.up_proj"), "model.layers.3.mlp.experts.11.gate_proj");
        assert_eq!(key("mlp.experts.11.down_proj"), "model.layers.3.mlp.experts.11.down_proj");
        assert_eq!(Input::of("lm_head").key(), "lm_head");
        let stack = |module: &str| Input::of(module).stack(module);
        let expert = "model.layers.3.mlp.experts.11.up_proj";
        assert_eq!(stack(expert).as_deref(), Some("model.layers.3.mlp.switch_mlp.up_proj"));
        assert_eq!(stack("model.layers.3.mlp.shared_experts.up_proj"), None);
    }
}
