//! Packets of some sizes alone may be dropped, so sizes are drawn and counted in bands of equal width.

use rand_chacha::rand_core::Rng;

/// A band of sizes, of those from nothing to the mesh's MTU. Sizes have all headers included, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeBand(u16);

impl SizeBand {
    pub const COUNT: u16 = 8;

    pub fn of(size: u16, mtu: u16) -> Self {
        Self((size / Self::width(mtu)).min(Self::COUNT - 1))
    }

    /// Draws a size. The bands take turns, so that each comes once in [`Self::COUNT`] turns.
    pub fn draw(turn: u64, mtu: u16, rng: &mut impl Rng) -> u16 {
        // Neighbours in time are not neighbours in size. The shift after all of them brings each band to every target, however many
        // targets take turns.
        let count = u64::from(Self::COUNT);
        let band = ((turn * 3 + turn / count) % count) as u16;
        let width = Self::width(mtu);
        (band * width + (rng.next_u32() % u32::from(width)) as u16).min(mtu)
    }

    pub fn number(self) -> usize {
        self.0.into()
    }

    const fn width(mtu: u16) -> u16 {
        mtu / Self::COUNT + 1
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    #[test]
    fn every_band_has_its_turn_and_its_sizes() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for mtu in [576, 1280, 1420, 8920, u16::MAX] {
            let drawn = (0..8).map(|turn| SizeBand::draw(turn, mtu, &mut rng));
            let mut bands: Vec<_> = drawn.map(|size| SizeBand::of(size, mtu).number()).collect();
            bands.sort_unstable();
            assert_eq!(bands, (0..8).collect::<Vec<_>>(), "{mtu}");
            assert_eq!(SizeBand::of(0, mtu).number(), 0);
            assert_eq!(SizeBand::of(mtu, mtu).number(), 7, "{mtu}");
        }
    }
}
