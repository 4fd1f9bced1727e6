//! An input that is several: a kind and a length in front of each part, whatever bytes they are.

/// One part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step<'a> {
    /// Which of the things that can be done.
    pub(crate) kind: u8,
    /// With what.
    pub(crate) bytes: &'a [u8],
}

/// Most parts that count.
const MAX_STEPS: usize = 16;

/// Cuts an input into its parts. A part may say to be longer than what is left: then it is what is left.
pub(crate) fn cut(mut input: &[u8]) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    while let [kind, high, low, rest @ ..] = input
        && steps.len() < MAX_STEPS
    {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (bytes, rest) = rest.split_at(length.min(rest.len()));
        steps.push(Step { kind: *kind, bytes });
        input = rest;
    }
    steps
}

/// The input that has these parts.
pub(crate) fn join(steps: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut input = Vec::new();
    for (kind, bytes) in steps {
        let length = u16::try_from(bytes.len()).expect("a part of a seed is short");
        input.push(*kind);
        input.extend(length.to_be_bytes());
        input.extend(bytes);
    }
    input
}

/// The first byte chooses; the rest is what it is about.
pub(crate) fn choose(input: &[u8], among: u8) -> Option<(u8, &[u8])> {
    input.split_first().map(|(choice, rest)| (choice % among, rest))
}
