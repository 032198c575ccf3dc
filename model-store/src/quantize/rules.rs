//! Choice of the tensors that are quantised: the matrices of linear layers, by the names under which the
//! families of built-in engines publish them.

/// Last parts of the names of matrices that a decoder or an encoder multiplies by.
const LINEAR: [&str; 19] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "w1",
    "w2",
    "w3",
    "lm_head",
    "query",
    "key",
    "value",
    "dense",
    "Wqkv",
    "Wo",
    "Wi",
    "out_proj",
];
/// Table of embeddings of a decoder. A tied one is also the output matrix: a third of a small model.
const TABLE: &str = "embed_tokens";
/// Inputs that share a scale.
const GROUP: usize = kernels::int8::GROUP;
/// Matrix of two halves that an encoder uses apart: each is whole panels.
const HALVES: &str = "Wi";
/// Outputs below which a matrix stays as it is: a classifier.
const OUTPUTS_MIN: usize = kernels::int8::PANEL;

/// Returns whether the tensor of this name and shape is quantised. Inputs that fill no whole group leave a
/// matrix as it is, and so do too few outputs. Routers of experts stay: they are small, and decide much.
#[must_use]
pub fn is_quantized(name: &str, shape: &[usize]) -> bool {
    let Some(layer) = name.strip_suffix(".weight") else { return false };
    let last = layer.rsplit('.').next().unwrap_or_default();
    let [outputs, inputs] = *shape else { return false };
    let fits = outputs >= OUTPUTS_MIN && inputs > 0 && inputs.is_multiple_of(GROUP);
    let parts_fit = last != HALVES || outputs.is_multiple_of(2 * OUTPUTS_MIN);
    fits && parts_fit && (LINEAR.contains(&last) || last == TABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_of_linear_layers_are_quantised_and_nothing_else() {
        for name in [
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.3.block_sparse_moe.experts.7.w2.weight",
            "model.layers.3.mlp.experts.7.gate_proj.weight",
            "lm_head.weight",
            "embed_tokens.weight",
            "bert.encoder.layer.0.attention.output.dense.weight",
            "layers.1.attn.Wqkv.weight",
        ] {
            assert!(is_quantized(name, &[64, 64]), "{name}");
            assert!(!is_quantized(name, &[64]) && !is_quantized(name, &[64, 64, 2]), "{name}: no matrix");
            assert!(!is_quantized(name, &[64, 65]) && !is_quantized(name, &[64, 0]), "{name}: no group");
            assert!(!is_quantized(name, &[15, 64]), "{name}: no panel");
        }
        assert!(is_quantized("layers.1.mlp.Wi.weight", &[96, 64]));
        assert!(!is_quantized("layers.1.mlp.Wi.weight", &[80, 64]), "halves of 40 are no whole panels");
        for name in [
            "model.layers.3.block_sparse_moe.gate.weight",
            "model.layers.3.mlp.gate.weight",
            "model.layers.0.input_layernorm.weight",
            "model.layers.0.self_attn.q_proj.bias",
            "embeddings.word_embeddings.weight",
            "embeddings.position_embeddings.weight",
            "classifier.weight",
        ] {
            assert!(!is_quantized(name, &[64, 64]), "{name}");
        }
    }
}
