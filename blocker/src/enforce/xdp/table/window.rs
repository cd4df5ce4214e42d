//! Array maps as memory of this process, through mmap(2).
//!
//! The kernel counts every page of such a mapping as resident at once, so a map is seen through windows that are made
//! when they are needed and let go of when the agent is idle. Words are read and written by single instructions that
//! neither the compiler nor the processor reorders.

use std::{
    array, io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering},
};

/// Bytes of a window; a multiple of every page size.
const WINDOW_BYTES: usize = 128 * 1024;
/// Words of a cache line.
const LINE_WORDS: usize = 8;

/// One map.
#[derive(Debug)]
pub(super) struct Windows {
    map: OwnedFd,
    bytes: usize,
    /// What is mapped of each window.
    windows: Vec<Option<Window>>,
    /// Why a window could not be had; the words in it read as 0 and take no value.
    failed: Option<io::Error>,
}

#[derive(Debug)]
struct Window {
    at: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a window is memory of the process, not of a thread, and is owned.
unsafe impl Send for Window {}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `Window::new` and nothing borrows from it: words are only copied.
        let _unmapped = unsafe { libc::munmap(self.at.as_ptr().cast(), self.bytes) };
    }
}

impl Window {
    fn new(map: &OwnedFd, offset: usize, bytes: usize) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                offset,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { at, bytes })
    }
}

impl Windows {
    /// A map of so many bytes, made with BPF_F_MMAPABLE.
    pub(super) fn new(map: BorrowedFd<'_>, bytes: usize) -> io::Result<Self> {
        let windows = (0..bytes.div_ceil(WINDOW_BYTES)).map(|_| None).collect();
        Ok(Self { map: map.try_clone_to_owned()?, bytes, windows, failed: None })
    }

    /// Lets go of every window.
    pub(super) fn rest(&mut self) {
        self.windows.fill_with(|| None);
    }

    /// Whether everything could be read and written since the failure was last taken.
    pub(super) fn is_sound(&self) -> bool {
        self.failed.is_none()
    }

    /// Why something could not be read or written since this was last asked.
    pub(super) fn take_failure(&mut self) -> Option<io::Error> {
        self.failed.take()
    }

    /// Where `size` bytes at `offset` are; they lie in one window, since both are powers of two aligned.
    #[inline]
    fn at(&mut self, offset: usize, size: usize) -> Option<NonNull<u8>> {
        assert!(offset.is_multiple_of(size) && offset + size <= self.bytes, "a word of the map");
        let (index, within) = (offset / WINDOW_BYTES, offset % WINDOW_BYTES);
        let begin = match self.windows.get(index)? {
            Some(window) => window.at,
            None => self.open(index)?,
        };
        // SAFETY: `within` is less than the window's bytes, because `offset + size` is at most the map's.
        Some(unsafe { begin.add(within) })
    }

    /// Maps a window, and says where it begins.
    #[cold]
    fn open(&mut self, index: usize) -> Option<NonNull<u8>> {
        let begin = index * WINDOW_BYTES;
        let page = rustix::param::page_size();
        let bytes = WINDOW_BYTES.min((self.bytes - begin).next_multiple_of(page));
        match Window::new(&self.map, begin, bytes) {
            Ok(new) => Some(self.windows.get_mut(index)?.insert(new).at),
            Err(error) => {
                self.failed = Some(error);
                None
            }
        }
    }

    #[inline]
    fn long(&mut self, offset: usize) -> Option<&AtomicU64> {
        let at = self.at(offset, size_of::<u64>())?;
        // SAFETY: the bytes are mapped, aligned and shared; everybody accesses them atomically, and the borrow of
        // `self` keeps the window.
        Some(unsafe { AtomicU64::from_ptr(at.cast().as_ptr()) })
    }

    #[inline]
    fn half(&mut self, offset: usize) -> Option<&AtomicU32> {
        let at = self.at(offset, size_of::<u32>())?;
        // SAFETY: as for a long. The program adds to the whole word that this is half of, which the processor keeps
        // apart.
        Some(unsafe { AtomicU32::from_ptr(at.cast().as_ptr()) })
    }

    #[inline]
    fn quarter(&mut self, offset: usize) -> Option<&AtomicU16> {
        let at = self.at(offset, size_of::<u16>())?;
        // SAFETY: as for a long.
        Some(unsafe { AtomicU16::from_ptr(at.cast().as_ptr()) })
    }

    /// A cache line, word by word.
    #[inline]
    pub(super) fn load_line(&mut self, offset: usize) -> [u64; LINE_WORDS] {
        const { assert!(WINDOW_BYTES.is_multiple_of(LINE_WORDS * size_of::<u64>())) };
        let Some(at) = self.at(offset, LINE_WORDS * size_of::<u64>()) else { return [0; LINE_WORDS] };
        let at = at.cast::<u64>();
        // SAFETY: the whole line is mapped, aligned and shared, as a long is.
        array::from_fn(|index| unsafe { AtomicU64::from_ptr(at.add(index).as_ptr()) }.load(Ordering::Acquire))
    }

    /// Has the processor fetch the cache line around `offset`, so that whoever comes to it soon need not wait.
    #[inline]
    pub(super) fn prefetch(&mut self, offset: usize) {
        let Some(_at) = self.at(offset, 1) else { return };
        // SAFETY: a hint, which neither reads nor writes as far as the program is concerned.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(_at.cast::<i8>().as_ptr());
        }
    }

    #[inline]
    pub(super) fn load(&mut self, offset: usize) -> u64 {
        self.long(offset).map_or(0, |word| word.load(Ordering::Acquire))
    }

    #[inline]
    pub(super) fn store(&mut self, offset: usize, value: u64) {
        if let Some(word) = self.long(offset) {
            word.store(value, Ordering::Release);
        }
    }

    /// Adds to a word at one blow, whoever else adds to it.
    pub(super) fn add(&mut self, offset: usize, more: u64) {
        if let Some(word) = self.long(offset) {
            word.fetch_add(more, Ordering::AcqRel);
        }
    }

    #[inline]
    pub(super) fn load_half(&mut self, offset: usize) -> u32 {
        self.half(offset).map_or(0, |word| word.load(Ordering::Acquire))
    }

    #[inline]
    pub(super) fn store_half(&mut self, offset: usize, value: u32) {
        if let Some(word) = self.half(offset) {
            word.store(value, Ordering::Release);
        }
    }

    #[inline]
    pub(super) fn load_quarter(&mut self, offset: usize) -> u16 {
        self.quarter(offset).map_or(0, |word| word.load(Ordering::Acquire))
    }

    #[inline]
    pub(super) fn store_quarter(&mut self, offset: usize, value: u16) {
        if let Some(word) = self.quarter(offset) {
            word.store(value, Ordering::Release);
        }
    }
}
