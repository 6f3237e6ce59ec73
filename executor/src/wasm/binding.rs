//! The C interface of `libwasmedge.so.0`, loaded at run time: the only unsafe code of this crate, beside a few calls in
//! `process`.
//!
//! Types and values are those of `wasmedge/wasmedge.h` of 0.14.1 and of 0.17.1, compared field by field. What differs
//! between the two and is used here: `ConfigureSetMaxMemoryPage` takes a `uint32_t` in 0.14 and a `uint64_t` in 0.17
//! (one integer register in both calling conventions that matter, x86-64 and AArch64, whose callee reads the low half in
//! 0.14; the values passed fit in 17 bits), and `MemoryInstanceGetPageSize` returns one (of which the lower half is read).
//! Enumerations were renumbered (proposals, error codes of the loader and the validator), so of those only the result codes
//! 0, 1 and 3 are used, equal in both. Run modes came with 0.16: before, code that was compiled ahead of time is run unless
//! the interpreter is forced.
//!
//! Nothing that is created here is deleted but what was parsed: the process ends with the guest.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicPtr, Ordering};

/// `WasmEdge_ErrCode_Terminated`: the guest called `proc_exit`.
const TERMINATED: u32 = 1;
/// `WasmEdge_RunMode_AOT`.
const RUN_COMPILED: c_int = 2;
/// `WasmEdge_ErrCode_CostLimitExceeded`.
const OUT_OF_FUEL: u32 = 3;

/// An opaque object of the library.
type Object = *mut c_void;

/// `WasmEdge_Result`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawResult {
    code: u32,
}

/// `WasmEdge_String`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawString {
    length: u32,
    bytes: *const c_char,
}

/// Declares the table of functions and how it is filled. Those that are `[optional]` are not in every version.
macro_rules! functions {
    ($($field:ident = $symbol:literal: fn($($argument:ty),*) $(-> $result:ty)?;)*
     $([optional] $extra:ident = $extra_symbol:literal: fn($($extra_argument:ty),*);)*) => {
        struct Functions {
            $($field: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
            $($extra: Option<unsafe extern "C" fn($($extra_argument),*)>,)*
        }

        impl Functions {
            /// Fills the table; the error is the name of the function that is missing.
            fn resolve(handle: Object) -> Result<Self, &'static str> {
                Ok(Self {
                    $($field: {
                        let address = symbol(handle, $symbol).ok_or($symbol.to_str().unwrap_or_default())?;
                        // SAFETY: the library's headers declare a function of this name with the type of the field (see
                        // the head of this file), and an object and a function pointer are of one size wherever dlsym
                        // is.
                        unsafe {
                            std::mem::transmute::<Object, unsafe extern "C" fn($($argument),*) $(-> $result)?>(address)
                        }
                    },)*
                    $($extra: symbol(handle, $extra_symbol).map(|address| {
                        // SAFETY: as above.
                        unsafe { std::mem::transmute::<Object, unsafe extern "C" fn($($extra_argument),*)>(address) }
                    }),)*
                })
            }
        }
    };
}

/// The address of a symbol of the library `handle`.
fn symbol(handle: Object, name: &'static CStr) -> Option<Object> {
    // SAFETY: the handle came from dlopen and is never closed; the name ends with a zero byte.
    let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
    (!address.is_null()).then_some(address)
}

functions! {
    version_get = c"WasmEdge_VersionGet": fn() -> *const c_char;
    log_off = c"WasmEdge_LogOff": fn();
    log_errors = c"WasmEdge_LogSetErrorLevel": fn();
    result_message = c"WasmEdge_ResultGetMessage": fn(RawResult) -> *const c_char;
    result_code = c"WasmEdge_ResultGetCode": fn(RawResult) -> u32;
    configure_create = c"WasmEdge_ConfigureCreate": fn() -> Object;
    configure_interpreter = c"WasmEdge_ConfigureSetForceInterpreter": fn(Object, bool);
    configure_pages = c"WasmEdge_ConfigureSetMaxMemoryPage": fn(Object, u64);
    configure_counting = c"WasmEdge_ConfigureStatisticsSetInstructionCounting": fn(Object, bool);
    configure_costs = c"WasmEdge_ConfigureStatisticsSetCostMeasuring": fn(Object, bool);
    statistics_create = c"WasmEdge_StatisticsCreate": fn() -> Object;
    statistics_limit = c"WasmEdge_StatisticsSetCostLimit": fn(Object, u64);
    statistics_instructions = c"WasmEdge_StatisticsGetInstrCount": fn(Object) -> u64;
    statistics_cost = c"WasmEdge_StatisticsGetTotalCost": fn(Object) -> u64;
    find_memory = c"WasmEdge_ModuleInstanceFindMemory": fn(Object, RawString) -> Object;
    memory_pages = c"WasmEdge_MemoryInstanceGetPageSize": fn(Object) -> u64;
    store_create = c"WasmEdge_StoreCreate": fn() -> Object;
    loader_create = c"WasmEdge_LoaderCreate": fn(Object) -> Object;
    loader_parse = c"WasmEdge_LoaderParseFromBuffer": fn(Object, *mut Object, *const u8, u32) -> RawResult;
    loader_parse_file = c"WasmEdge_LoaderParseFromFile": fn(Object, *mut Object, *const c_char) -> RawResult;
    validator_create = c"WasmEdge_ValidatorCreate": fn(Object) -> Object;
    validator_validate = c"WasmEdge_ValidatorValidate": fn(Object, Object) -> RawResult;
    executor_create = c"WasmEdge_ExecutorCreate": fn(Object, Object) -> Object;
    module_delete = c"WasmEdge_ASTModuleDelete": fn(Object);
    executor_register = c"WasmEdge_ExecutorRegisterImport": fn(Object, Object, Object) -> RawResult;
    executor_instantiate = c"WasmEdge_ExecutorInstantiate": fn(Object, *mut Object, Object, Object) -> RawResult;
    executor_invoke =
        c"WasmEdge_ExecutorInvoke": fn(Object, Object, *const c_void, u32, *mut c_void, u32) -> RawResult;
    find_function = c"WasmEdge_ModuleInstanceFindFunction": fn(Object, RawString) -> Object;
    wasi_create = c"WasmEdge_ModuleInstanceCreateWASI":
        fn(*const *const c_char, u32, *const *const c_char, u32, *const *const c_char, u32) -> Object;
    wasi_init = c"WasmEdge_ModuleInstanceInitWASI":
        fn(Object, *const *const c_char, u32, *const *const c_char, u32, *const *const c_char, u32);
    plugin_load = c"WasmEdge_PluginLoadFromPath": fn(*const c_char);
    plugin_count = c"WasmEdge_PluginListPluginsLength": fn() -> u32;
    plugin_list = c"WasmEdge_PluginListPlugins": fn(*mut RawString, u32) -> u32;
    plugin_find = c"WasmEdge_PluginFind": fn(RawString) -> Object;
    plugin_modules_count = c"WasmEdge_PluginListModuleLength": fn(Object) -> u32;
    plugin_modules = c"WasmEdge_PluginListModule": fn(Object, *mut RawString, u32) -> u32;
    plugin_create_module = c"WasmEdge_PluginCreateModule": fn(Object, RawString) -> Object;
    wasi_exit_code = c"WasmEdge_ModuleInstanceWASIGetExitCode": fn(Object) -> u32;
    [optional] log_callback = c"WasmEdge_LogSetCallback": fn(Option<log::Receive>);
    [optional] configure_run_mode = c"WasmEdge_ConfigureSetRunMode": fn(Object, c_int);
}

mod build;
mod compiler;
pub mod log;

/// The loaded library, silenced.
pub struct Library {
    handle: Object,
    functions: Functions,
}

/// Why a file isn't the library.
#[derive(Debug)]
pub enum LoadError {
    /// In the words of dlerror(3).
    Load(String),
    /// It lacks this function.
    Symbol(&'static str),
}

/// A shared object that is loaded until this is dropped, or for longer if one that was loaded after it needs it.
#[derive(Debug)]
pub struct SharedObject {
    handle: Object,
}

impl SharedObject {
    /// Loads `name`, a path or a bare name that the dynamic loader looks for. The error is in the words of dlerror(3).
    pub fn load(name: &CStr) -> Result<Self, String> {
        // Bound when called, where the object leaves the choice: of the functions that the engine imports, it calls few.
        // SAFETY: the name ends with a zero byte. The object's initialisers are run: it is the engine that the installation
        // trusts, found before anything of the container could change what is found, or one that this process has made.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) };
        match handle.is_null() {
            true => Err(last_error()),
            false => Ok(Self { handle }),
        }
    }
}

impl Drop for SharedObject {
    fn drop(&mut self) {
        // SAFETY: the handle came from dlopen; nothing that was looked up in it is used any more.
        unsafe { libc::dlclose(self.handle) };
    }
}

/// A result of the engine that isn't success.
#[derive(Debug)]
pub struct Failure {
    /// In the engine's words.
    pub message: String,
}

/// How a guest that was started ended.
pub enum End {
    /// `_start` returned, or the guest called `proc_exit` with this.
    Exit(u32),
    /// It trapped.
    Trap(Failure),
    /// It has executed as many instructions as it may.
    OutOfFuel,
}

/// How instructions are counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counting {
    /// They are counted.
    pub count: bool,
    /// The most that are executed. The engine weighs them by a table, in which each is 1 unless it is told otherwise.
    pub limit: Option<u64>,
}

/// Reads the present values of a machine, at any time, from any thread and from a signal handler: each is a number that the
/// machine keeps, and the machine is never freed.
pub struct Gauge {
    statistics: Object,
    instructions: Option<unsafe extern "C" fn(Object) -> u64>,
    memory: AtomicPtr<c_void>,
    pages: unsafe extern "C" fn(Object) -> u64,
}

// SAFETY: the functions it holds load one word each of objects that are never freed. The count of instructions is atomic; that
// of pages is a plain word, aligned, written by `memory.grow`: one reads the former value or the later.
unsafe impl Send for Gauge {}
// SAFETY: as above.
unsafe impl Sync for Gauge {}

impl Gauge {
    /// Instructions executed so far, if they are counted.
    pub fn instructions(&self) -> Option<u64> {
        // SAFETY: where there is a function, there are statistics, which are never freed.
        self.instructions.map(|read| unsafe { read(self.statistics) })
    }

    /// Pages of the guest's memory, once it is there.
    pub fn pages(&self) -> Option<u64> {
        let memory = self.memory.load(Ordering::Acquire);
        // SAFETY: the memory belongs to an instance that is never freed.
        (!memory.is_null()).then(|| unsafe { (self.pages)(memory) } & u64::from(u32::MAX))
    }
}

impl Library {
    /// Loads `name`, a path or a bare name that the dynamic loader looks for.
    pub fn load(name: &CStr) -> Result<Self, LoadError> {
        // Its log goes to stdout by default, which is the guest's.
        log::with_stream(|| {
            let object = SharedObject::load(name).map_err(LoadError::Load)?;
            let handle = object.handle;
            let functions = Functions::resolve(handle).map_err(LoadError::Symbol)?;
            // Its functions are called until the process ends.
            std::mem::forget(object);
            let library = Self { handle, functions };
            log::divert(&library.functions, &library.version());
            Ok(library)
        })
    }

    /// Loads a plugin, whose modules every machine that is made from then on has, and says whether there is one in that file. It is
    /// native code, and its initialisers are run.
    pub fn load_plugin(&self, path: &CStr) -> bool {
        // SAFETY: takes nothing, returns a number.
        let before = unsafe { (self.functions.plugin_count)() };
        // SAFETY: the path ends with a zero byte. What is loaded is a file that the administrator named, and that the caller
        // has found to be nobody else's.
        unsafe { (self.functions.plugin_load)(path.as_ptr()) };
        // SAFETY: as above.
        unsafe { (self.functions.plugin_count)() > before }
    }

    /// Makes an instance of each module of each plugin that is loaded.
    fn plugin_modules(&self) -> Result<Vec<Object>, Failure> {
        let functions = &self.functions;
        let mut made = Vec::new();
        // SAFETY: takes nothing, returns a number.
        let count = unsafe { (functions.plugin_count)() };
        // SAFETY: writes at most `count` strings, which are the library's own and live as long as the plugin does.
        let plugins = unsafe { names(count, |to| (functions.plugin_list)(to, count)) };
        for plugin in plugins {
            // SAFETY: a string of the library; the plugin that it finds is never unloaded.
            let plugin = unsafe { (functions.plugin_find)(plugin) };
            // SAFETY: takes a plugin or null, returns a number.
            let count = unsafe { (functions.plugin_modules_count)(plugin) };
            // SAFETY: as for the plugins.
            let modules = unsafe { names(count, |to| (functions.plugin_modules)(plugin, to, count)) };
            for module in modules {
                // SAFETY: a plugin, and the name of one of its modules.
                let instance = unsafe { (functions.plugin_create_module)(plugin, module) };
                if instance.is_null() {
                    return Err(Failure {
                        message: "WasmEdge_PluginCreateModule failed".to_owned(),
                    });
                }
                made.push(instance);
            }
        }
        Ok(made)
    }

    /// The library's version, like `0.17.1`.
    pub fn version(&self) -> String {
        // SAFETY: returns a static string.
        unsafe { text((self.functions.version_get)()) }
    }

    /// A configuration for interpreting, or for running code that was compiled ahead of time.
    fn configure(&self, compiled: bool) -> Result<Object, Failure> {
        let functions = &self.functions;
        // SAFETY: the object is created here, checked, and used by functions that are declared for it.
        unsafe {
            let configure = made((functions.configure_create)(), "WasmEdge_ConfigureCreate")?;
            if !compiled {
                (functions.configure_interpreter)(configure, true);
            } else if let Some(run_mode) = functions.configure_run_mode {
                run_mode(configure, RUN_COMPILED);
            }
            Ok(configure)
        }
    }

    fn check(&self, result: RawResult) -> Result<(), Failure> {
        if result.code == 0 {
            Ok(())
        } else {
            Err(self.failure(result))
        }
    }

    fn failure(&self, result: RawResult) -> Failure {
        // SAFETY: returns a static string for any code.
        let message = unsafe { text((self.functions.result_message)(result)) };
        Failure { message }
    }
}

/// Everything that one module needs to run, with WASI.
///
/// Not the engine's own "VM", which puts the same parts together: that one also makes the host modules of every plugin the
/// engine knows of, in case the guest imports one, which takes four times as long as all of this.
pub struct Machine<'library> {
    library: &'library Library,
    compiled: bool,
    store: Object,
    loader: Object,
    validator: Object,
    wasi: Object,
    /// Null until [`Machine::bound`].
    executor: Object,
    /// The parsed module, once [`Machine::load`] has succeeded; null before.
    module: Object,
    /// The module in the store, once [`Machine::instantiate`] has succeeded; null before.
    instance: Object,
    gauge: &'static Gauge,
    _not_sync: PhantomData<Object>,
}

impl<'library> Machine<'library> {
    /// Makes one that can parse and validate. Only if it is to be `compiled` will it take code that was compiled ahead of
    /// time, and run it.
    pub fn new(library: &'library Library, compiled: bool) -> Result<Self, Failure> {
        let functions = &library.functions;
        // SAFETY: the objects are created here and used by the functions that are declared for them; null is checked
        // before use; arrays of length 0 are not looked at.
        unsafe {
            let configure = library.configure(compiled)?;
            let wasi = (functions.wasi_create)(null(), 0, null(), 0, null(), 0);
            let gauge = Gauge {
                statistics: null_mut(),
                instructions: None,
                memory: AtomicPtr::new(null_mut()),
                pages: functions.memory_pages,
            };
            Ok(Self {
                library,
                compiled,
                store: made((functions.store_create)(), "WasmEdge_StoreCreate")?,
                loader: made((functions.loader_create)(configure), "WasmEdge_LoaderCreate")?,
                validator: made((functions.validator_create)(configure), "WasmEdge_ValidatorCreate")?,
                executor: null_mut(),
                wasi: made(wasi, "WasmEdge_ModuleInstanceCreateWASI")?,
                module: null_mut(),
                instance: null_mut(),
                gauge: Box::leak(Box::new(gauge)),
                _not_sync: PhantomData,
            })
        }
    }

    /// Lets it execute: with memories that can't grow beyond `pages`, if given, and counting instructions as told.
    pub fn bound(&mut self, pages: Option<u32>, counting: Counting) -> Result<(), Failure> {
        let functions = &self.library.functions;
        // SAFETY: as for `new`; null statistics are none, which only who counts needs.
        unsafe {
            let configure = self.library.configure(self.compiled)?;
            if let Some(pages) = pages {
                (functions.configure_pages)(configure, pages.into());
            }
            (functions.configure_counting)(configure, counting.count);
            (functions.configure_costs)(configure, counting.limit.is_some());
            let instructions = match counting {
                Counting { count: true, .. } => Some(functions.statistics_instructions),
                // Each costs 1.
                Counting { limit: Some(_), .. } => Some(functions.statistics_cost),
                _ => None,
            };
            let statistics = match instructions {
                Some(_) => made((functions.statistics_create)(), "WasmEdge_StatisticsCreate")?,
                None => null_mut(),
            };
            self.executor = made(
                (functions.executor_create)(configure, statistics),
                "WasmEdge_ExecutorCreate",
            )?;
            if let Some(limit) = counting.limit {
                // Not before: to make the executor is to set the limit that a configuration has, which is none.
                (functions.statistics_limit)(statistics, limit);
            }
            self.gauge = Box::leak(Box::new(Gauge {
                statistics,
                instructions,
                memory: AtomicPtr::new(null_mut()),
                pages: functions.memory_pages,
            }));
            for module in [self.wasi].into_iter().chain(self.library.plugin_modules()?) {
                self.library
                    .check((functions.executor_register)(self.executor, self.store, module))?;
            }
            Ok(())
        }
    }

    /// Parses a module. The engine keeps nothing of `module`.
    pub fn load(&mut self, module: &[u8]) -> Result<(), Failure> {
        let Ok(length) = u32::try_from(module.len()) else {
            return Err(Failure {
                message: "larger than 4 GiB".to_owned(),
            });
        };
        let parse = self.library.functions.loader_parse;
        // SAFETY: the loader lives; pointer and length are of one slice, which outlives the call; the result goes to a
        // field of this object.
        self.library
            .check(unsafe { parse(self.loader, &mut self.module, module.as_ptr(), length) })
    }

    /// Maps the library `path`, code that was compiled ahead of time, and parses the module that is kept in it. The dynamic
    /// loader takes a path for one only if there is a slash in it.
    pub fn load_compiled(&mut self, path: &CStr) -> Result<(), Failure> {
        let parse = self.library.functions.loader_parse_file;
        // SAFETY: the loader lives; the path ends with a zero byte and outlives the call; the result goes to a field of this
        // object. That the library's own initialisers may be run is for the caller to judge.
        self.library
            .check(unsafe { parse(self.loader, &mut self.module, path.as_ptr()) })
    }

    /// Validates what was loaded.
    pub fn validate(&mut self) -> Result<(), Failure> {
        // SAFETY: the validator lives; without a module (null), it answers with an error.
        self.library
            .check(unsafe { (self.library.functions.validator_validate)(self.validator, self.module) })
    }

    /// Sets what the guest gets by WASI. A preopen is `GUEST:HOST`.
    pub fn wasi(&mut self, args: &[CString], env: &[CString], preopens: &[CString]) {
        let pointers = |strings: &[CString]| strings.iter().map(|string| string.as_ptr()).collect::<Vec<_>>();
        let (args, env, preopens) = (pointers(args), pointers(env), pointers(preopens));
        // SAFETY: the WASI module lives; every pointer is to a string that ends with a zero byte
        // and outlives the call, which copies; the lengths are those of the arrays, far below 2^32.
        unsafe {
            (self.library.functions.wasi_init)(
                self.wasi,
                args.as_ptr(),
                args.len() as u32,
                env.as_ptr(),
                env.len() as u32,
                preopens.as_ptr(),
                preopens.len() as u32,
            );
        }
    }

    /// Reads its present values.
    pub fn gauge(&self) -> &'static Gauge {
        self.gauge
    }

    /// Links the module, which must have no start section.
    pub fn instantiate(&mut self) -> Result<(), Failure> {
        let result = self.raw_instantiate();
        self.library.check(result)
    }

    /// Links the module and runs its start section: guest code. `None` if that has returned.
    pub fn instantiate_and_start(&mut self) -> Option<End> {
        let result = self.raw_instantiate();
        (result.code != 0).then(|| self.end(result))
    }

    fn raw_instantiate(&mut self) -> RawResult {
        let functions = &self.library.functions;
        let instantiate = functions.executor_instantiate;
        // SAFETY: executor (null before `bound`, which is answered with an error) and store live; without a validated module,
        // it answers with an error; the result goes to a field of this object.
        let result = unsafe { instantiate(self.executor, &mut self.instance, self.store, self.module) };
        // SAFETY: without an instance (null), none is found; the name, by which commands export it, is a static string.
        let memory = unsafe { (functions.find_memory)(self.instance, name("memory")) };
        self.gauge.memory.store(memory, Ordering::Release);
        result
    }

    /// Gives back what was parsed, once the module is instantiated, which has copied what it needs: with the interpreter that
    /// is half of what the engine holds of a module. The engine does the same with modules that it registers by name.
    pub fn forget_parsed(&mut self) {
        let parsed = std::mem::replace(&mut self.module, null_mut());
        // SAFETY: the module is this object's own, and used no more: null is nothing to delete. malloc_trim takes any number;
        // it gives back the pages in between that nobody uses any more.
        unsafe {
            (self.library.functions.module_delete)(parsed);
            libc::malloc_trim(0);
        }
    }

    /// Runs the exported function `function`, which takes and returns nothing.
    pub fn execute(&mut self, function: &'static str) -> End {
        let functions = &self.library.functions;
        // SAFETY: without an instance (null), none is found; the name is a static string.
        let found = unsafe { (functions.find_function)(self.instance, name(function)) };
        if found.is_null() {
            return End::Trap(Failure {
                message: format!("there is no function {function:?}"),
            });
        }
        // SAFETY: the executor lives, the function is of its instance; no parameters and no results are passed, so their
        // arrays may be null.
        let result = unsafe { (functions.executor_invoke)(self.executor, found, null(), 0, null_mut(), 0) };
        self.end(result)
    }

    fn end(&self, result: RawResult) -> End {
        // SAFETY: takes any result.
        match unsafe { (self.library.functions.result_code)(result) } {
            0 => End::Exit(0),
            // SAFETY: the WASI module lives.
            TERMINATED => End::Exit(unsafe { (self.library.functions.wasi_exit_code)(self.wasi) }),
            OUT_OF_FUEL => End::OutOfFuel,
            _ => End::Trap(self.library.failure(result)),
        }
    }
}

/// An object, unless it is null.
fn made(object: Object, call: &str) -> Result<Object, Failure> {
    match object.is_null() {
        true => Err(Failure {
            message: format!("{call} failed"),
        }),
        false => Ok(object),
    }
}

/// A name for the library, which copies it.
fn name(text: &'static str) -> RawString {
    RawString {
        length: text.len() as u32,
        bytes: text.as_ptr().cast(),
    }
}

/// The strings that `list` writes to where it is told, `count` at most.
///
/// # Safety
/// `list` writes no more than `count`, and returns how many there are.
unsafe fn names(count: u32, list: impl FnOnce(*mut RawString) -> u32) -> Vec<RawString> {
    let none = RawString {
        length: 0,
        bytes: null(),
    };
    let mut names = vec![none; count as usize];
    let written = list(names.as_mut_ptr());
    names.truncate(written as usize);
    names
}

/// What went wrong in the last call of the dl family.
fn last_error() -> String {
    // SAFETY: dlerror returns null or a string that lives until the next such call by this thread.
    unsafe { text(libc::dlerror()) }
}

/// Copies a string of the library.
///
/// # Safety
/// `string` is null or points to bytes that end with a zero byte and live during the call.
unsafe fn text(string: *const c_char) -> String {
    if string.is_null() {
        return "unknown error".to_owned();
    }
    // SAFETY: promised by the caller.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}
