//! Throwing what PyTorch expects when memory runs out: `c10::OutOfMemoryError`.
//!
//! A null pointer is not looked at by PyTorch: the next kernel would write through it. Its own allocator
//! throws, and Python sees `torch.OutOfMemoryError` with the sentence. We are not linked to PyTorch, so the
//! exception is put together from what its libraries export:
//!
//! ```text
//!   memory         __cxa_allocate_exception                              libstdc++
//!   object         constructor of the base class c10::Error              libc10
//!   its class      virtual table of c10::OutOfMemoryError                libc10_cuda
//!   the throw      __cxa_throw with the type information of that class   libc10_cuda, libstdc++
//! ```
//!
//! Where one of these is missing it is `std::runtime_error`, with the words that programs look for.

use std::ffi::{CStr, c_char, c_void};
use std::mem::{MaybeUninit, transmute_copy};
use std::sync::OnceLock;

use crate::symbols::Library;

/// What `c10::OutOfMemoryError` may need at most; today it is about a quarter of it.
const OBJECT_BYTES: usize = 1024;

/// `c10::SourceLocation`: 24 bytes, by value.
#[repr(C)]
#[derive(Clone, Copy)]
struct SourceLocation {
    function: *const c_char,
    file: *const c_char,
    line: u32,
}

/// `std::string` of libstdc++'s current ABI; passed by the address of an object.
#[repr(C, align(8))]
struct StdString([u8; 32]);

type AllocateException = unsafe extern "C" fn(usize) -> *mut c_void;
type Destructor = unsafe extern "C" fn(*mut c_void);
type Throw = unsafe extern "C-unwind" fn(*mut c_void, *const c_void, Destructor) -> !;
type MakeString = unsafe extern "C-unwind" fn(*mut StdString, *const c_char, usize, *const u8);
type DropString = unsafe extern "C" fn(*mut StdString);
type MakeError = unsafe extern "C-unwind" fn(*mut c_void, SourceLocation, *mut StdString);
type MakeRuntimeError = unsafe extern "C-unwind" fn(*mut c_void, *const c_char);

/// What it takes to throw anything.
struct Cxx {
    allocate: AllocateException,
    throw: Throw,
    make_runtime_error: MakeRuntimeError,
    drop_runtime_error: Destructor,
    runtime_error: *const c_void,
}

/// What it takes to throw PyTorch's own.
struct OutOfMemory {
    make_string: MakeString,
    drop_string: DropString,
    make_error: MakeError,
    class: *const *const c_void,
    type_info: *const c_void,
}

// SAFETY: addresses of functions and constants in libraries that stay loaded.
unsafe impl Send for Cxx {}
// SAFETY: as above.
unsafe impl Sync for Cxx {}
// SAFETY: as above.
unsafe impl Send for OutOfMemory {}
// SAFETY: as above.
unsafe impl Sync for OutOfMemory {}

/// The address of a symbol, as the pointer or function that it is.
///
/// # Safety
/// `T` must be the type of a pointer to what the symbol names.
unsafe fn find<T: Copy>(library: &Library, name: &CStr) -> Option<T> {
    const { assert!(size_of::<T>() == size_of::<*mut c_void>()) };
    let address = library.find(name)?;
    // SAFETY: both are pointers, not null, and `T` is one to what is there, by this function's contract.
    Some(unsafe { transmute_copy(&address) })
}

impl Cxx {
    fn load() -> Option<Cxx> {
        let library = Library::open(c"libstdc++.so.6")?;
        // SAFETY: the names and types are those of the Itanium C++ ABI and of `std::runtime_error`, whose
        // complete constructor takes the object and a C string.
        unsafe {
            Some(Cxx {
                allocate: find(&library, c"__cxa_allocate_exception")?,
                throw: find(&library, c"__cxa_throw")?,
                make_runtime_error: find(&library, c"_ZNSt13runtime_errorC1EPKc")?,
                drop_runtime_error: find(&library, c"_ZNSt13runtime_errorD1Ev")?,
                runtime_error: find(&library, c"_ZTISt13runtime_error")?,
            })
        }
    }
}

impl OutOfMemory {
    fn load() -> Option<OutOfMemory> {
        let (c10, cuda) = (Library::loaded(c"libc10.so")?, Library::loaded(c"libc10_cuda.so")?);
        let cxx = Library::loaded(c"libstdc++.so.6")?;
        // SAFETY: the names carry the types of the arguments: a string made of characters, their number and
        // an allocator (empty, by address); its destructor; the base constructor of an error made of a
        // source location and a string; a virtual table and a type information.
        unsafe {
            Some(OutOfMemory {
                make_string: find(&cxx, c"_ZNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEC1EPKcmRKS3_")?,
                drop_string: find(&cxx, c"_ZNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEED1Ev")?,
                make_error: find(
                    &c10,
                    c"_ZN3c105ErrorC2ENS_14SourceLocationENSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE",
                )?,
                class: find(&cuda, c"_ZTVN3c1016OutOfMemoryErrorE")?,
                type_info: find(&cuda, c"_ZTIN3c1016OutOfMemoryErrorE")?,
            })
        }
    }
}

fn cxx() -> Option<&'static Cxx> {
    static CXX: OnceLock<Option<Cxx>> = OnceLock::new();
    CXX.get_or_init(Cxx::load).as_ref()
}

fn out_of_memory() -> Option<&'static OutOfMemory> {
    static TORCH: OnceLock<Option<OutOfMemory>> = OnceLock::new();
    TORCH.get_or_init(OutOfMemory::load).as_ref()
}

/// Finds what throwing takes, once; later there may be no memory for it. Tells whether PyTorch's own
/// exception can be thrown.
pub fn prepare() -> bool {
    cxx().is_some() && out_of_memory().is_some()
}

/// Throws `text`, as PyTorch's exception for a lack of memory where `lack` says so and that can be. Returns
/// only where there is no C++ to throw with.
pub fn throw(text: &str, lack: bool) {
    let Some(cxx) = cxx() else { return };
    let torch = if lack { out_of_memory() } else { None };
    let mut text = text.replace('\0', " ");
    text.push('\0');
    // SAFETY: by the C++ ABI. The exception's memory is larger than either object. Each constructor gets the
    // arguments that its name says, the text with its end; a string is destroyed by whoever passed it. The
    // virtual table has two words before its first function, and its third function is the complete
    // destructor's address: tables begin with the complete and the deleting destructor of `c10::Error`, as
    // `std::exception` declares them. What is thrown passes this frame, which may unwind.
    unsafe {
        let object = (cxx.allocate)(OBJECT_BYTES);
        match torch {
            Some(torch) => {
                let mut string = MaybeUninit::<StdString>::uninit();
                let allocator = 0;
                (torch.make_string)(string.as_mut_ptr(), text.as_ptr().cast(), text.len() - 1, &allocator);
                let location =
                    SourceLocation { function: c"alloc".as_ptr(), file: c"tilework".as_ptr(), line: 0 };
                (torch.make_error)(object, location, string.as_mut_ptr());
                (torch.drop_string)(string.as_mut_ptr());
                let functions = torch.class.add(2);
                object.cast::<*const *const c_void>().write(functions);
                let destructor = transmute_copy::<*const c_void, Destructor>(&*functions);
                drop(text);
                (cxx.throw)(object, torch.type_info, destructor)
            }
            None => {
                (cxx.make_runtime_error)(object, text.as_ptr().cast());
                drop(text);
                (cxx.throw)(object, cxx.runtime_error, cxx.drop_runtime_error)
            }
        }
    }
}
