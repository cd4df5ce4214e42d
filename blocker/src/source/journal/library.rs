//! libsystemd's journal reader, found while running, so that machines without systemd need not have it.
//!
//! The only `unsafe` of the sources. A journal belongs to the thread that opened it (sd_journal_open(3)) and is closed
//! when it is dropped. Functions are looked up once; the library is never unloaded.
#![expect(unsafe_code, reason = "libsystemd is a C library")]

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    io,
    marker::PhantomData,
    os::fd::{AsFd, BorrowedFd},
    ptr::{NonNull, null, null_mut},
    slice,
    sync::OnceLock,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Trouble, entry::Entry, position::JournalPosition};
use crate::{policy::JournalGroup, source::file::LINE_BYTES_MAX};

const NAME: &CStr = c"libsystemd.so.0";
/// `SD_JOURNAL_LOCAL_ONLY` (sd-journal.h): no journals of other machines.
const LOCAL_ONLY: c_int = 1;

/// An open journal, of which only libsystemd knows the inside.
#[repr(C)]
struct SdJournal {
    _opaque: [u8; 0],
}

type Journal = *mut SdJournal;

/// The functions used, and how to find them.
macro_rules! api {
    ($($field:ident: $name:literal fn($($argument:ty),*) -> $result:ty;)*) => {
        struct Api {
            $($field: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl Api {
            fn load() -> Option<Self> {
                // SAFETY: the name ends in NUL; loading runs libsystemd's initialisers, which are a system library's.
                let library = unsafe { libc::dlopen(NAME.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
                let library = NonNull::new(library)?;
                // SAFETY: the handle is open and never closed, and each name ends in NUL.
                let symbol = |name: &CStr| NonNull::new(unsafe { libc::dlsym(library.as_ptr(), name.as_ptr()) });
                Some(Self {
                    $($field: {
                        let symbol = symbol($name)?.as_ptr();
                        // SAFETY: the symbol is the function of this name in ABI version 0 of libsystemd, which
                        // sd-journal.h declares with this type, and a function's address has the size of a pointer.
                        unsafe {
                            std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) -> $result>(symbol)
                        }
                    },)*
                })
            }
        }
    };
}

// As sd-journal.h declares them.
api! {
    open_namespace: c"sd_journal_open_namespace" fn(*mut Journal, *const c_char, c_int) -> c_int;
    close: c"sd_journal_close" fn(Journal) -> ();
    add_match: c"sd_journal_add_match" fn(Journal, *const c_void, usize) -> c_int;
    add_disjunction: c"sd_journal_add_disjunction" fn(Journal) -> c_int;
    set_data_threshold: c"sd_journal_set_data_threshold" fn(Journal, usize) -> c_int;
    seek_cursor: c"sd_journal_seek_cursor" fn(Journal, *const c_char) -> c_int;
    test_cursor: c"sd_journal_test_cursor" fn(Journal, *const c_char) -> c_int;
    seek_realtime: c"sd_journal_seek_realtime_usec" fn(Journal, u64) -> c_int;
    next: c"sd_journal_next" fn(Journal) -> c_int;
    get_data: c"sd_journal_get_data" fn(Journal, *const c_char, *mut *const c_void, *mut usize) -> c_int;
    get_cursor: c"sd_journal_get_cursor" fn(Journal, *mut *mut c_char) -> c_int;
    get_realtime: c"sd_journal_get_realtime_usec" fn(Journal, *mut u64) -> c_int;
    get_cutoff: c"sd_journal_get_cutoff_realtime_usec" fn(Journal, *mut u64, *mut u64) -> c_int;
    get_usage: c"sd_journal_get_usage" fn(Journal, *mut u64) -> c_int;
    get_fd: c"sd_journal_get_fd" fn(Journal) -> c_int;
    process: c"sd_journal_process" fn(Journal) -> c_int;
}

impl Api {
    fn get() -> Option<&'static Self> {
        static API: OnceLock<Option<Api>> = OnceLock::new();
        API.get_or_init(Self::load).as_ref()
    }
}

/// An open journal that shows only what was asked for.
pub(super) struct Library {
    api: &'static Api,
    journal: NonNull<SdJournal>,
    /// The fields to read, with `=`'s place.
    fields: Vec<CString>,
    /// The reader stands on an entry that was not handed out yet.
    pending: bool,
    /// Entries that were not readable.
    pub(super) unreadable: u64,
    /// Bound to its thread.
    _here: PhantomData<*mut ()>,
}

impl Library {
    /// Whether the library is on this machine.
    pub(super) fn is_there() -> bool {
        Api::get().is_some()
    }

    pub(super) fn open(
        namespace: Option<&str>,
        groups: &[&JournalGroup],
        fields: &[String],
    ) -> Result<Self, Trouble> {
        let api = Api::get().ok_or_else(|| Trouble::Absent("libsystemd is not there".to_owned()))?;
        let no_nul =
            |text: &str| CString::new(text).map_err(|_| Trouble::Absent("a name holds NUL".to_owned()));
        let namespace = namespace.map(no_nul).transpose()?;
        let fields = fields.iter().map(|field| no_nul(field)).collect::<Result<Vec<_>, _>>()?;
        let mut journal = null_mut();
        let name = namespace.as_ref().map_or(null(), |name| name.as_ptr());
        // SAFETY: `journal` takes the new journal, and the name is NULL or ends in NUL.
        let opened = unsafe { (api.open_namespace)(&raw mut journal, name, LOCAL_ONLY) };
        failed("open the journal", opened).map_err(Trouble::Absent)?;
        let journal =
            NonNull::new(journal).ok_or_else(|| Trouble::Absent("libsystemd opened nothing".to_owned()))?;
        let open = Self { api, journal, fields, pending: false, unreadable: 0, _here: PhantomData };
        open.select(groups)?;
        // Asked before anything is read, so that what changes meanwhile is told.
        // SAFETY: the journal is open.
        failed("watch the journal", unsafe { (api.get_fd)(open.raw()) }).map_err(Trouble::Absent)?;
        Ok(open)
    }

    fn raw(&self) -> Journal {
        self.journal.as_ptr()
    }

    fn select(&self, groups: &[&JournalGroup]) -> Result<(), Trouble> {
        for (index, group) in groups.iter().enumerate() {
            if index > 0 {
                // SAFETY: the journal is open.
                failed("select entries", unsafe { (self.api.add_disjunction)(self.raw()) })
                    .map_err(Trouble::Absent)?;
            }
            for term in super::terms(group) {
                // SAFETY: the journal is open, and the pointer and length are those of `term`, which is copied.
                let added = unsafe { (self.api.add_match)(self.raw(), term.as_ptr().cast(), term.len()) };
                failed("select entries", added).map_err(Trouble::Absent)?;
            }
        }
        // One more than a line may have, so that a longer one is seen to be longer, and the name of the field.
        // SAFETY: the journal is open.
        let set = unsafe { (self.api.set_data_threshold)(self.raw(), LINE_BYTES_MAX + 128) };
        failed("bound the length of fields", set).map_err(Trouble::Absent).map(drop)
    }

    /// Bytes on disk of what may be read; 0 where there is nothing, or nothing that this process may read.
    pub(super) fn usage(&self) -> u64 {
        let mut bytes = 0;
        // SAFETY: the journal is open and `bytes` takes a number.
        let got = unsafe { (self.api.get_usage)(self.raw(), &raw mut bytes) };
        if got < 0 { 0 } else { bytes }
    }

    /// Goes behind the entry of a position, else to its time. Returns whether entries between are gone.
    pub(super) fn seek(&mut self, position: &JournalPosition) -> Result<bool, Trouble> {
        let (mut oldest, mut newest) = (0, 0);
        // SAFETY: the journal is open and both take a number.
        let cutoff = unsafe { (self.api.get_cutoff)(self.raw(), &raw mut oldest, &raw mut newest) };
        let cursor = position.cursor.as_deref().and_then(|cursor| CString::new(cursor).ok());
        // SAFETY: the journal is open and the cursor ends in NUL.
        let sought = |cursor: &CString| unsafe { (self.api.seek_cursor)(self.raw(), cursor.as_ptr()) } >= 0;
        match cursor.filter(sought) {
            Some(cursor) => {
                if self.step()? {
                    // SAFETY: the journal is open, stands on an entry, and the cursor ends in NUL.
                    let same = unsafe { (self.api.test_cursor)(self.raw(), cursor.as_ptr()) };
                    self.pending = same <= 0;
                    return Ok(self.pending && cutoff > 0 && oldest > position.realtime);
                }
                Ok(false)
            }
            None => {
                // SAFETY: the journal is open.
                let sought = unsafe { (self.api.seek_realtime)(self.raw(), position.realtime) };
                failed("find the place in the journal", sought).map_err(Trouble::Broken)?;
                Ok(position.cursor.is_some())
            }
        }
    }

    /// Whether there is an entry, from the first on.
    pub(super) fn has_any(&mut self) -> Result<bool, Trouble> {
        self.seek(&JournalPosition::default())?;
        self.step()
    }

    /// Reads the next entry, if there is one.
    pub(super) fn next(&mut self, entry: &mut Entry) -> Result<bool, Trouble> {
        loop {
            if !std::mem::take(&mut self.pending) && !self.step()? {
                return Ok(false);
            }
            entry.clear();
            match self.read(entry) {
                Ok(()) => return Ok(true),
                // One bad entry; those behind it may be well.
                Err(_) => self.unreadable += 1,
            }
        }
    }

    fn step(&mut self) -> Result<bool, Trouble> {
        // SAFETY: the journal is open.
        failed("read the journal", unsafe { (self.api.next)(self.raw()) })
            .map_err(Trouble::Broken)
            .map(|got| got > 0)
    }

    fn read(&self, entry: &mut Entry) -> Result<(), String> {
        // SAFETY: the journal is open and stands on an entry, and the place takes a number.
        failed("read an entry", unsafe { (self.api.get_realtime)(self.raw(), &raw mut entry.realtime) })?;
        for field in &self.fields {
            let (mut data, mut length) = (null(), 0);
            // SAFETY: the journal is open and stands on an entry, the name ends in NUL, and both places are ours.
            let got =
                unsafe { (self.api.get_data)(self.raw(), field.as_ptr(), &raw mut data, &raw mut length) };
            if got == -libc::ENOENT {
                continue;
            }
            failed("read an entry", got)?;
            if data.is_null() {
                continue;
            }
            // SAFETY: after success the data has this length and stays until the next call on this journal; it is
            // copied before that.
            let data = unsafe { slice::from_raw_parts(data.cast::<u8>(), length) };
            // "FIELD=value", of the field asked for.
            if let Some(value) = data.get(field.as_bytes().len() + 1..) {
                entry.set(field.as_bytes(), value);
            }
        }
        Ok(())
    }

    /// The name of the entry it stands on.
    pub(super) fn cursor(&self) -> Option<String> {
        let mut cursor = null_mut();
        // SAFETY: the journal is open and the place takes a string of ours to free.
        let got = unsafe { (self.api.get_cursor)(self.raw(), &raw mut cursor) };
        if got < 0 || cursor.is_null() {
            return None;
        }
        // SAFETY: after success it is a string that ends in NUL.
        let text = unsafe { CStr::from_ptr(cursor) }.to_str().ok().map(str::to_owned);
        // SAFETY: libsystemd made it with malloc and gave it away; nothing else has it.
        unsafe { libc::free(cursor.cast()) };
        text
    }

    /// Waits until the journal changes, `stop` is readable, or the time is over.
    pub(super) fn wait(&mut self, stop: BorrowedFd<'_>, time: Duration) -> Result<(), Trouble> {
        // SAFETY: the journal is open.
        let fd =
            failed("watch the journal", unsafe { (self.api.get_fd)(self.raw()) }).map_err(Trouble::Broken)?;
        // SAFETY: the descriptor is the journal's, which is open for as long as this borrow lives.
        let changed = unsafe { BorrowedFd::borrow_raw(fd) };
        wait_for([changed, stop], time);
        // SAFETY: the journal is open.
        failed("watch the journal", unsafe { (self.api.process)(self.raw()) })
            .map_err(Trouble::Broken)
            .map(drop)
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: the journal is open, in this thread, and not used afterwards.
        unsafe { (self.api.close)(self.raw()) };
    }
}

/// Waits until one of these is readable, at most for `time`.
pub(super) fn wait_for(fds: [BorrowedFd<'_>; 2], time: Duration) {
    let [first, second] = &fds;
    let mut fds = [
        PollFd::from_borrowed_fd(first.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(second.as_fd(), PollFlags::IN),
    ];
    let time = Timespec::try_from(time).ok();
    // An interruption is an early end; whoever waits looks again anyway.
    let _again = poll(&mut fds, time.as_ref());
}

/// libsystemd returns a negative error number.
fn failed(what: &str, code: c_int) -> Result<c_int, String> {
    if code >= 0 { Ok(code) } else { Err(format!("{what}: {}", io::Error::from_raw_os_error(-code))) }
}
