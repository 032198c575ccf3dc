//! Fingerprints in words: one word for each of the first six bytes of a digest.

use protocol::Digest;

/// Returns the words for the first six bytes of a digest.
pub(super) fn of(digest: &Digest) -> [&'static str; 6] {
    std::array::from_fn(|index| WORDS[usize::from(digest.0[index])])
}

/// One word per byte value: short and concrete. No two words are one letter apart, so that a slip in speaking
/// or listening does not yield another word of the list.
#[rustfmt::skip]
const WORDS: [&str; 256] = [
    "acid", "acorn", "agent", "alarm", "album", "amber", "angle", "apple", "april", "apron", "arena",
    "armor", "arrow", "atlas", "attic", "autumn", "badge", "baker", "banjo", "barn", "basil", "beach",
    "beaver", "berry", "bison", "blade", "blank", "bonus", "botany", "brave", "bread", "brick", "bridge",
    "broom", "brush", "bucket", "butter", "cabin", "cable", "cactus", "camel", "canal", "candle", "canoe",
    "canyon", "carbon", "cargo", "castle", "cedar", "cello", "chalk", "cherry", "chess", "cider", "circus",
    "citrus", "clay", "cliff", "clock", "cloud", "clover", "coast", "cobra", "cocoa", "comet", "copper",
    "coral", "cotton", "crane", "crater", "cricket", "crown", "cubic", "curry", "daisy", "delta", "denim",
    "depot", "desert", "diamond", "dinner", "dolphin", "domino", "donkey", "dragon", "drum", "duck", "dune",
    "eagle", "easel", "echo", "eclipse", "elbow", "elder", "engine", "envoy", "epoch", "estate", "fabric",
    "falcon", "fender", "fiddle", "finch", "flame", "flask", "flint", "floor", "flute", "forest", "fossil",
    "fox", "frost", "fudge", "galaxy", "garlic", "garnet", "gazelle", "gecko", "ginger", "glacier", "globe",
    "goat", "granite", "grape", "gravel", "guitar", "hammer", "harbor", "harp", "hazel", "helmet", "heron",
    "hockey", "honey", "horizon", "hotel", "hunter", "husky", "igloo", "index", "indigo", "inlet", "iris",
    "island", "ivory", "jacket", "jaguar", "jasmine", "jelly", "jewel", "jigsaw", "jungle", "kayak",
    "kernel", "kettle", "kiosk", "kitten", "koala", "ladder", "lagoon", "lantern", "laptop", "laser",
    "lemon", "lentil", "lily", "lizard", "llama", "lobster", "locket", "lotus", "lunar", "magnet", "mango",
    "maple", "marble", "meadow", "melon", "meteor", "mimosa", "mint", "mirror", "moose", "mosaic", "muffin",
    "museum", "mustard", "napkin", "nectar", "needle", "nickel", "noodle", "nutmeg", "oasis", "ocean",
    "olive", "onion", "opera", "orbit", "orchid", "otter", "oyster", "panda", "papaya", "parrot", "pasta",
    "pebble", "pelican", "pepper", "piano", "pigeon", "pilot", "pine", "planet", "plum", "pollen", "pond",
    "poppy", "potato", "prism", "pumpkin", "puzzle", "quail", "quartz", "quilt", "rabbit", "radar", "radio",
    "raven", "ribbon", "river", "robin", "saddle", "salmon", "satin", "scarf", "shadow", "silver", "sofa",
    "spider", "spruce", "sugar", "sunset", "swan", "teapot", "temple", "tiger", "timber", "tomato", "tulip",
    "turtle", "velvet", "violin", "walnut", "willow", "zebra",
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks whether replacing, adding or removing one letter turns one word into the other.
    fn one_letter_apart(a: &str, b: &str) -> bool {
        let (short, long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
        match long.len() - short.len() {
            0 => short.bytes().zip(long.bytes()).filter(|(x, y)| x != y).count() == 1,
            1 => (0..long.len()).any(|at| format!("{}{}", &long[..at], &long[at + 1..]) == short),
            _ => false,
        }
    }

    #[test]
    fn no_two_words_can_be_mistaken_for_each_other() {
        for (index, word) in WORDS.iter().enumerate() {
            assert!((3..=7).contains(&word.len()) && word.bytes().all(|c| c.is_ascii_lowercase()), "{word}");
            for other in &WORDS[index + 1..] {
                assert!(word < other, "{word} {other}: sorted, and so each once");
                assert!(!one_letter_apart(word, other), "{word} {other}");
            }
        }
    }

    #[test]
    fn words_follow_the_first_six_bytes() {
        let mut digest = Digest([9; 32]);
        digest.0[..6].copy_from_slice(&[0, 1, 2, 253, 254, 255]);
        assert_eq!(of(&digest), [WORDS[0], WORDS[1], WORDS[2], WORDS[253], WORDS[254], WORDS[255]]);
    }
}
