//! Numbers of watched locations, and of a location's paths, targets and services: a type for each, and a vector that takes no
//! other.

use std::fmt;
use std::marker::PhantomData;
use std::ops;

pub trait Index: Copy + Eq {
    fn new(number: usize) -> Self;
    fn number(self) -> usize;
}

macro_rules! index {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub struct $name(usize);

        impl Index for $name {
            fn new(number: usize) -> Self {
                Self(number)
            }
            fn number(self) -> usize {
                self.0
            }
        }
    )*};
}

index! {
    /// One watched location of an observer.
    WatchIdx
    /// One path, and so one candidate, of a location.
    PathIdx
    /// One target of a location.
    TargetIdx
    /// One service of a location.
    ServiceIdx
}

/// A vector with indexes of one kind.
#[derive(Clone)]
pub struct IndexVec<I, T> {
    items: Vec<T>,
    index: PhantomData<fn(I)>,
}

impl<I: Index, T> IndexVec<I, T> {
    pub fn len(&self) -> usize {
        self.items.len()
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The index that the next item will have.
    pub fn next_index(&self) -> I {
        I::new(self.items.len())
    }

    pub fn push(&mut self, item: T) -> I {
        let index = self.next_index();
        self.items.push(item);
        index
    }

    pub fn indices(&self) -> impl DoubleEndedIterator<Item = I> + Clone + use<I, T> {
        (0..self.items.len()).map(I::new)
    }

    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.items.iter()
    }

    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, T> {
        self.items.iter_mut()
    }

    pub fn enumerate(&self) -> impl Iterator<Item = (I, &T)> {
        self.items.iter().enumerate().map(|(number, item)| (I::new(number), item))
    }

    pub fn position(&self, is: impl FnMut(&T) -> bool) -> Option<I> {
        self.items.iter().position(is).map(I::new)
    }

    pub fn get_mut(&mut self, index: I) -> Option<&mut T> {
        self.items.get_mut(index.number())
    }

    /// Takes an item out, so that its index is that of the next one until another is put in its place.
    pub fn remove(&mut self, index: I) -> T {
        self.items.remove(index.number())
    }

    pub fn insert(&mut self, index: I, item: T) {
        self.items.insert(index.number(), item);
    }
}

impl<I, T> IntoIterator for IndexVec<I, T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.into_iter()
    }
}

impl<I, T> Default for IndexVec<I, T> {
    fn default() -> Self {
        Self { items: Vec::new(), index: PhantomData }
    }
}

impl<I, T> FromIterator<T> for IndexVec<I, T> {
    fn from_iter<A: IntoIterator<Item = T>>(items: A) -> Self {
        Self { items: Vec::from_iter(items), index: PhantomData }
    }
}

impl<I, T: fmt::Debug> fmt::Debug for IndexVec<I, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.items.fmt(f)
    }
}

impl<I: Index, T> ops::Index<I> for IndexVec<I, T> {
    type Output = T;

    fn index(&self, index: I) -> &T {
        &self.items[index.number()]
    }
}

impl<I: Index, T> ops::IndexMut<I> for IndexVec<I, T> {
    fn index_mut(&mut self, index: I) -> &mut T {
        &mut self.items[index.number()]
    }
}
