//! Recipe of quantised weights, as `config.json` names it: the field is the one of other tools, the method
//! our own.

use super::fields::CheckpointError;
use crate::Digest;
use serde::{Deserialize, Serialize};

/// Name of the method.
const METHOD: &str = "quorate";
/// Version of the recipe and of the layout of its panels.
const VERSION: u32 = 1;
/// Bits of a weight.
const BITS: u32 = 8;
/// Weights that share a scale.
const GROUP: u32 = 32;

/// Recipe by which a model's matrices were quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantization {
    /// Bits of a weight.
    pub bits: u32,
    /// Digest of the files of the model from which the weights come.
    pub source: Digest,
}

/// The field as it is written. Fields are in alphabetical order.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawQuantization {
    bits: u32,
    group_size: u32,
    quant_method: String,
    source: Digest,
    version: u32,
}

impl Quantization {
    /// Returns the value of `quantization_config`.
    #[must_use]
    pub fn to_json(self) -> String {
        assert_eq!(self.bits, BITS, "the only width so far");
        let raw = RawQuantization {
            bits: self.bits,
            group_size: GROUP,
            quant_method: METHOD.into(),
            source: self.source,
            version: VERSION,
        };
        serde_json::to_string(&raw).expect("numbers and texts are JSON")
    }

    /// Reads the value of `quantization_config`.
    pub(super) fn read(value: serde_json::Value) -> Result<Self, CheckpointError> {
        let method = value.get("quant_method").and_then(serde_json::Value::as_str).unwrap_or_default();
        if method != METHOD {
            return Err(CheckpointError::unsupported("quantized weights of another tool"));
        }
        let raw: RawQuantization = serde_json::from_value(value)
            .map_err(|error| CheckpointError::invalid(format!("`quantization_config`: {error}")))?;
        match raw {
            RawQuantization { version: VERSION, bits: BITS, group_size: GROUP, source, .. } => {
                Ok(Self { bits: BITS, source })
            }
            RawQuantization { version, bits, group_size, .. } => Err(CheckpointError::unsupported(format!(
                "quantized weights of version {version}, with {bits} bits in groups of {group_size}"
            ))),
        }
    }
}
