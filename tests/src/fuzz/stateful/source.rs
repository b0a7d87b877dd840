use std::time::Duration;

/// Bytes as choices. When they are used up every choice is 0.
pub(super) struct Source<'a>(pub &'a [u8]);

impl Source<'_> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((byte, rest)) => {
                self.0 = rest;
                *byte
            }
            None => 0,
        }
    }

    pub fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n.max(1)
    }

    /// Returns `true` once in this many times.
    pub fn once_in(&mut self, n: u8) -> bool {
        self.byte().is_multiple_of(n)
    }

    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    pub fn list<T>(&mut self, most: usize, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let n = self.below(most + 1);
        (0..n).map(|_| one(self)).collect()
    }

    pub fn option<T>(&mut self, one: impl FnOnce(&mut Self) -> T) -> Option<T> {
        if self.byte() & 1 == 1 { Some(one(self)) } else { None }
    }

    pub fn bytes(&mut self, most: usize) -> Vec<u8> {
        self.list(most, Self::byte)
    }

    /// Small as a rule, and now and then where counting on overflows.
    pub fn number(&mut self) -> u64 {
        match self.byte() % 16 {
            0..=10 => u64::from(self.byte()),
            11 => u64::MAX,
            12 => u64::MAX / 2,
            13 => 1 << 62,
            14 => u64::from(u32::MAX),
            _ => u64::from_le_bytes(std::array::from_fn(|_| self.byte())),
        }
    }

    pub fn small(&mut self) -> u32 {
        u32::try_from(self.number()).unwrap_or(u32::MAX)
    }

    pub fn duration(&mut self) -> Duration {
        match self.byte() % 8 {
            0..=4 => Duration::from_millis(u64::from(self.byte())),
            5 => Duration::MAX,
            6 => Duration::from_micros(self.number()),
            _ => Duration::from_secs(self.number()),
        }
    }

    pub fn share(&mut self) -> f32 {
        let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, 1e30, f32::MIN_POSITIVE];
        match self.byte() % 8 {
            0..=5 => f32::from(self.byte()) / 255.0,
            _ => self.pick(&odd),
        }
    }

    pub fn text(&mut self) -> String {
        match self.byte() % 8 {
            0..=5 => "a sentence".to_owned(),
            6 => "\x1b[2J\n\u{202e}".repeat(self.below(80)),
            _ => "x".repeat(self.below(40) * 50),
        }
    }
}
