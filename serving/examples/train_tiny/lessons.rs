//! Training text of the tiny model: sums in words, Quorate's commands and terms, and fallback answers for
//! everything else. All of it is written or computed here; there is no external source.

use kernels::sampling::uniform;

/// Commands and their meanings.
const COMMANDS: &[(&str, &str)] = &[
    ("up", "starts a whole cluster on this machine, shows how it works, and stays up until you stop it."),
    ("control", "runs one control replica, which orders what the circle decided and plans where it runs."),
    ("agent", "runs one node: it checks every order, loads verified models and starts sandboxed workers."),
    ("circle", "founds a circle and shows its members and its rules."),
    ("propose", "writes a change down as a proposal that members can vote on."),
    ("review", "shows a proposal in words, with what would change and who has signed."),
    ("approve", "signs a proposal with your key, after showing what you sign."),
    ("reject", "signs your no to a proposal."),
    ("node", "lists the nodes, what devices they have and how they are."),
    ("model import", "cuts a model into segments, encrypts them and spreads the shards over the stores."),
    ("model verify", "reads every shard of a model and names each one that is wrong or missing."),
    ("model repair", "rebuilds wrong or missing shards from the others."),
    ("new service", "writes a commented manifest that is valid as it is."),
    ("deploy", "proposes to run what a manifest says, and can wait until it runs."),
    ("service", "lists services and shows where each slot runs."),
    ("scale", "changes how many replicas run, within what was approved."),
    ("retire", "ends a service in order, with time to finish what runs."),
    ("logs", "shows what a service has written, and follows it."),
    ("status", "says what is wrong and which command to run next."),
    ("why", "says why something waits, moved or was refused."),
    ("verify", "checks a certificate offline, trusting no server."),
    ("explain", "says what an error code means and what to do."),
    ("context", "says which cluster you talk to, and switches."),
    ("key", "makes, lists and revokes keys for applications."),
];

/// Terms and their meanings.
const TERMS: &[(&str, &str)] = &[
    ("circle", "a group of people who govern a cloud together."),
    ("member", "a person of the circle who holds a key and votes."),
    ("quorum", "enough members to decide."),
    ("proposal", "a change that is written down and waits for votes."),
    ("ballot", "one member's signed yes or no to a proposal."),
    ("certificate", "a proposal with the ballots of a quorum; anyone can check it."),
    ("envelope", "what a certificate allows: which models, how many replicas, where, and until when."),
    ("slot", "a numbered place for one replica of a service."),
    ("fence", "a number that only grows, so that an old order can not come back."),
    ("lease", "a short time for which a node may go on without fresh word from control."),
    ("order", "a signed instruction to run one slot on one node."),
    ("node", "a machine that runs what the circle signed."),
    ("agent", "the process on each node that checks orders and starts workers."),
    ("worker", "a sandboxed process that computes a model and nothing else."),
    ("gateway", "the door where applications call models."),
    ("replica", "one of the control servers that agree on an order of events."),
    ("segment", "about one mebibyte of a model, encrypted and checked on its own."),
    ("shard", "one piece of an encoded segment; any four of six rebuild it."),
    ("manifest", "a file that says what to run and within which bounds."),
    ("genesis", "the first document of a circle, signed by every founder."),
    ("digest", "a short fingerprint of bytes; change one bit and it differs."),
    ("ticket", "a worker's proof to the gateway that its node ordered it."),
];

/// Answer to every other question.
const FALLBACK: &str =
    "i only know small sums and quorate's commands and terms. try: what does quorate why do?";
/// Answer to a greeting.
const GREETING: &str = "hello. ask me a small sum, or what a quorate command does.";
const GREETINGS: &[&str] =
    &["hello", "hi", "hello!", "hi there", "good morning", "hey", "help", "who are you?"];

/// Words for questions that have no answer here.
const OTHER_WORDS: &[&str] = &[
    "weather",
    "river",
    "song",
    "where",
    "when",
    "who",
    "my",
    "your",
    "cat",
    "music",
    "paint",
    "france",
    "capital",
    "of",
    "tell",
    "me",
    "a",
    "story",
    "about",
    "love",
    "car",
    "write",
    "poem",
    "the",
    "moon",
    "is",
    "how",
    "far",
    "best",
    "book",
    "cook",
    "rice",
    "train",
    "to",
    "city",
    "tomorrow",
    "today",
    "what",
    "why",
    "sky",
    "blue",
    "python",
    "code",
    "for",
    "game",
    "name",
    "president",
    "old",
    "are",
    "you",
    "do",
    "like",
    "tree",
    "water",
];

const NUMBERS: &[&str] = &[
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
const TENS: &[&str] = &["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];

/// Largest number in a question that adds or subtracts.
const ADD_MAX: usize = 20;
/// Largest number in a question that multiplies.
const TIMES_MAX: usize = 10;

/// One question and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lesson {
    pub question: String,
    pub answer: String,
}

/// Use of a question: training or a held-out set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Training,
    /// A fact that training phrases differently.
    HeldOutWording,
    /// A sum that training never contains, in any wording or order.
    HeldOutSum,
}

/// Every question about sums, commands and terms, with its part. Fallbacks and greetings are drawn by
/// [`draw`] only.
#[derive(Debug)]
pub(crate) struct Lessons {
    pub sums: Vec<Lesson>,
    pub facts: Vec<Lesson>,
    pub held_out_sums: Vec<Lesson>,
    pub held_out_wordings: Vec<Lesson>,
}

/// Returns all lessons, divided by `seed`.
pub(crate) fn lessons(seed: u64) -> Lessons {
    let mut all = Lessons { sums: vec![], facts: vec![], held_out_sums: vec![], held_out_wordings: vec![] };
    for (operation, a, b) in operations() {
        for (index, (question, answer)) in sum_wordings(operation, a, b).into_iter().enumerate() {
            let lesson = Lesson { question, answer };
            match sum_part(seed, operation, a, b, index) {
                Part::Training => all.sums.push(lesson),
                Part::HeldOutSum => all.held_out_sums.push(lesson),
                Part::HeldOutWording => all.held_out_wordings.push(lesson),
            }
        }
    }
    for (kind, table) in [COMMANDS, TERMS].into_iter().enumerate() {
        for (index, (name, meaning)) in table.iter().enumerate() {
            let wordings =
                if kind == 0 { command_wordings(name, meaning) } else { term_wordings(name, meaning) };
            let key = (kind * 1000 + index) as u64;
            let withheld = (uniform(seed, 7_000_000 + key) * wordings.len() as f64) as usize;
            for (wording, lesson) in wordings.into_iter().enumerate() {
                let to = if wording == withheld { &mut all.held_out_wordings } else { &mut all.facts };
                to.push(lesson);
            }
        }
    }
    all
}

/// Returns the lesson of this number: half sums, a third facts, the rest fallbacks and greetings. The same
/// number always gives the same lesson.
pub(crate) fn draw(lessons: &Lessons, seed: u64, number: u64) -> Lesson {
    let random = |purpose: u64| uniform(seed ^ 0x5eed, number * 64 + purpose);
    let pick = |list: &[Lesson]| list[(random(1) * list.len() as f64) as usize].clone();
    match random(0) {
        kind if kind < 0.55 => pick(&lessons.sums),
        kind if kind < 0.90 => pick(&lessons.facts),
        kind if kind < 0.93 => {
            let question = GREETINGS[(random(1) * GREETINGS.len() as f64) as usize].to_owned();
            Lesson { question, answer: GREETING.to_owned() }
        }
        _ => {
            let count = 2 + (random(1) * 7.0) as u64;
            let word = |index: u64| OTHER_WORDS[(random(2 + index) * OTHER_WORDS.len() as f64) as usize];
            let mut question = (0..count).map(word).collect::<Vec<_>>().join(" ");
            question.push_str(if random(60) < 0.5 { "?" } else { "" });
            Lesson { question, answer: FALLBACK.to_owned() }
        }
    }
}

fn operations() -> impl Iterator<Item = (&'static str, usize, usize)> {
    let pairs = |most: usize| (0..=most).flat_map(move |a| (0..=most).map(move |b| (a, b)));
    let plus = pairs(ADD_MAX).map(|(a, b)| ("plus", a, b));
    let minus = pairs(ADD_MAX).filter(|(a, b)| a >= b).map(|(a, b)| ("minus", a, b));
    let times = pairs(TIMES_MAX).map(|(a, b)| ("times", a, b));
    plus.chain(minus).chain(times)
}

fn sum_wordings(operation: &str, a: usize, b: usize) -> Vec<(String, String)> {
    let (result, sign) = match operation {
        "plus" => (a + b, "+"),
        "minus" => (a - b, "-"),
        _ => (a * b, "*"),
    };
    let (first, second) = (words(a), words(b));
    let answer = format!("{first} {operation} {second} is {}.", words(result));
    let questions = [
        format!("what is {first} {operation} {second}?"),
        format!("how much is {first} {operation} {second}?"),
        format!("{first} {operation} {second}"),
        format!("what is {a} {operation} {b}?"),
        format!("what is {a} {sign} {b}?"),
        format!("{a} {sign} {b}"),
    ];
    questions.into_iter().map(|question| (question, answer.clone())).collect()
}

/// Assigns a sum to a part: one in ten is never trained; of the others, one wording in six is not.
fn sum_part(seed: u64, operation: &str, a: usize, b: usize, wording: usize) -> Part {
    // The order of a sum or product does not matter, so both orders share a part.
    let (low, high) = if operation == "minus" { (a, b) } else { (a.min(b), a.max(b)) };
    let key = (operation.len() * 10_000 + low * 100 + high) as u64;
    if uniform(seed, key) < 0.10 {
        return Part::HeldOutSum;
    }
    let withheld = (uniform(seed, 1_000_000 + key) * 6.0) as usize;
    if wording == withheld { Part::HeldOutWording } else { Part::Training }
}

fn command_wordings(name: &str, meaning: &str) -> Vec<Lesson> {
    let answer = format!("quorate {name} {meaning}");
    let questions = [
        format!("what does quorate {name} do?"),
        format!("what is quorate {name} for?"),
        format!("what does the command quorate {name} do?"),
        format!("explain quorate {name}"),
        format!("quorate {name}?"),
        format!("tell me about quorate {name}"),
    ];
    questions.into_iter().map(|question| Lesson { question, answer: answer.clone() }).collect()
}

fn term_wordings(name: &str, meaning: &str) -> Vec<Lesson> {
    let article = |name: &str| if name.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    let named = format!("{} {name}", article(name));
    let answer = format!("{named} is {meaning}");
    let questions = [
        format!("what is {named}?"),
        format!("what does {name} mean?"),
        format!("explain the word {name}"),
        format!("{name}?"),
        format!("what do you call {named}?"),
        format!("tell me what {named} is"),
    ];
    questions.into_iter().map(|question| Lesson { question, answer: answer.clone() }).collect()
}

/// Writes a number below 1000 in words.
pub(crate) fn words(number: usize) -> String {
    match number {
        0..=19 => NUMBERS[number].to_owned(),
        20..=99 if number.is_multiple_of(10) => TENS[number / 10].to_owned(),
        20..=99 => format!("{}-{}", TENS[number / 10], NUMBERS[number % 10]),
        _ if number.is_multiple_of(100) => format!("{} hundred", NUMBERS[number / 100]),
        _ => format!("{} hundred {}", NUMBERS[number / 100], words(number % 100)),
    }
}
