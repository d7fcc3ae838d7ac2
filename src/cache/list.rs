//! `List`: doubly linked lists over the places of a slab. Knows nothing of what lies there.
//!
//! Eviction needs an order of entries in which any one can be taken out at once. Indices of 32
//! bits instead of pointers make that safe code, and half as large.

const NONE: u32 = u32::MAX;

/// The links of all places; a place is in one list at the most.
#[derive(Default)]
pub(crate) struct Links(Vec<Link>);

#[derive(Clone, Copy)]
struct Link {
    newer: u32,
    older: u32,
}

impl Links {
    /// Makes links for the places up to `place`.
    pub(crate) fn reach(&mut self, place: u32) {
        let len = place as usize + 1;
        if len > self.0.capacity() {
            self.0.reserve_exact(len + len / 8 - self.0.len());
        }
        if len > self.0.len() {
            self.0.resize(len, Link { newer: NONE, older: NONE });
        }
    }
}

/// A list from the newest place to the oldest.
pub(crate) struct List {
    newest: u32,
    oldest: u32,
}

impl List {
    pub(crate) fn new() -> Self {
        Self { newest: NONE, oldest: NONE }
    }

    pub(crate) fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    /// The place that is alone in the list.
    pub(crate) fn only(&self) -> Option<u32> {
        self.oldest().filter(|_| self.oldest == self.newest)
    }

    /// Adds a place that is in no list, as the newest.
    pub(crate) fn push(&mut self, links: &mut Links, place: u32) {
        links.0[place as usize] = Link { newer: NONE, older: self.newest };
        match self.newest {
            NONE => self.oldest = place,
            newest => links.0[newest as usize].newer = place,
        }
        self.newest = place;
    }

    /// Takes a place out of this list, where it must be.
    pub(crate) fn remove(&mut self, links: &mut Links, place: u32) {
        let Link { newer, older } = links.0[place as usize];
        match newer {
            NONE => self.newest = older,
            newer => links.0[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => links.0[older as usize].newer = newer,
        }
    }

    /// The places from the oldest to the newest, which must be those from the newest to the
    /// oldest, backwards.
    #[cfg(test)]
    pub(crate) fn places(&self, links: &Links) -> Vec<u32> {
        let walk = |from, next: fn(Link) -> u32| -> Vec<u32> {
            let some = |place| (place != NONE).then_some(place);
            let next = |&place: &u32| some(next(links.0[place as usize]));
            std::iter::successors(some(from), next).take(links.0.len() + 1).collect()
        };
        let places = walk(self.oldest, |link| link.newer);
        let backwards = walk(self.newest, |link| link.older);
        assert!(places.iter().eq(backwards.iter().rev()), "{places:?}, {backwards:?}");
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_leave_from_anywhere() {
        let (mut links, mut list) = (Links::default(), List::new());
        links.reach(4);
        (0..5).for_each(|place| list.push(&mut links, place));
        assert_eq!(list.places(&links), [0, 1, 2, 3, 4]);
        for (leaves, rest) in [(2, &[0, 1, 3, 4][..]), (0, &[1, 3, 4]), (4, &[1, 3]), (1, &[3])] {
            list.remove(&mut links, leaves);
            assert_eq!(list.places(&links), rest);
        }
        list.remove(&mut links, 3);
        assert_eq!(list.oldest(), None);
        list.push(&mut links, 1);
        assert_eq!(list.places(&links), [1]);
    }
}
