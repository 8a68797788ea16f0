import Glibc

/// An error number of the operating system.
///
/// The corresponding C name is `errno`.
@frozen
public struct Errno: RawRepresentable, Error, Hashable, Sendable, CustomStringConvertible {
  /// The positive C error number.
  public var rawValue: Int32

  /// Wraps a positive C error number.
  @inlinable
  public init(rawValue: Int32) { self.rawValue = rawValue }

  /// The C name, such as `EPERM`; `E<number>` for a number without a name here.
  public var name: String { Self.names[rawValue] ?? "E\(rawValue)" }

  /// Name and meaning, such as `EPERM (Operation not permitted)`.
  public var description: String {
    guard let text = unsafe strerror(rawValue) else { return name }
    return unsafe "\(name) (\(String(cString: text)))"
  }
}

extension Errno {
  /// Operation not permitted. The corresponding C constant is `EPERM`.
  public static let notPermitted = Errno(rawValue: EPERM)
  /// No such file, object or address. The corresponding C constant is `ENOENT`.
  public static let noEntry = Errno(rawValue: ENOENT)
  /// Interrupted by a signal. The corresponding C constant is `EINTR`.
  public static let interrupted = Errno(rawValue: EINTR)
  /// Input or output failed. The corresponding C constant is `EIO`.
  public static let inputOutput = Errno(rawValue: EIO)
  /// The list is too long, or a structure's unknown tail is not zero. The corresponding C constant is `E2BIG`.
  public static let tooBig = Errno(rawValue: E2BIG)
  /// Not an open descriptor. The corresponding C constant is `EBADF`.
  public static let badDescriptor = Errno(rawValue: EBADF)
  /// Would block. The corresponding C constant is `EAGAIN`.
  public static let wouldBlock = Errno(rawValue: EAGAIN)
  /// Out of memory, or of lockable memory. The corresponding C constant is `ENOMEM`.
  public static let noMemory = Errno(rawValue: ENOMEM)
  /// Permission denied by a file's mode. The corresponding C constant is `EACCES`.
  public static let accessDenied = Errno(rawValue: EACCES)
  /// Not an address of this process. The corresponding C constant is `EFAULT`.
  public static let badAddress = Errno(rawValue: EFAULT)
  /// In use. The corresponding C constant is `EBUSY`.
  public static let busy = Errno(rawValue: EBUSY)
  /// There already. The corresponding C constant is `EEXIST`.
  public static let exists = Errno(rawValue: EEXIST)
  /// No such device. The corresponding C constant is `ENODEV`.
  public static let noDevice = Errno(rawValue: ENODEV)
  /// No such device or address. The corresponding C constant is `ENXIO`.
  public static let noSuchAddressOrDevice = Errno(rawValue: ENXIO)
  /// Not a directory. The corresponding C constant is `ENOTDIR`.
  public static let notDirectory = Errno(rawValue: ENOTDIR)
  /// Is a directory. The corresponding C constant is `EISDIR`.
  public static let isDirectory = Errno(rawValue: EISDIR)
  /// Invalid argument. The corresponding C constant is `EINVAL`.
  public static let invalidArgument = Errno(rawValue: EINVAL)
  /// Too many open descriptors in this process. The corresponding C constant is `EMFILE`.
  public static let tooManyDescriptors = Errno(rawValue: EMFILE)
  /// No such ioctl. The corresponding C constant is `ENOTTY`.
  public static let notTypewriter = Errno(rawValue: ENOTTY)
  /// No space left. The corresponding C constant is `ENOSPC`.
  public static let noSpace = Errno(rawValue: ENOSPC)
  /// Illegal seek. The corresponding C constant is `ESPIPE`.
  public static let illegalSeek = Errno(rawValue: ESPIPE)
  /// Read-only. The corresponding C constant is `EROFS`.
  public static let readOnly = Errno(rawValue: EROFS)
  /// Result out of range. The corresponding C constant is `ERANGE`.
  public static let outOfRange = Errno(rawValue: ERANGE)
  /// Not implemented. The corresponding C constant is `ENOSYS`.
  public static let notImplemented = Errno(rawValue: ENOSYS)
  /// Value too large, such as a range that leaves the address space. The corresponding C constant is `EOVERFLOW`.
  public static let overflow = Errno(rawValue: EOVERFLOW)
  /// A message does not fit. The corresponding C constant is `EMSGSIZE`.
  public static let messageSize = Errno(rawValue: EMSGSIZE)
  /// Known, but not supported here. The corresponding C constant is `EOPNOTSUPP`.
  public static let notSupported = Errno(rawValue: EOPNOTSUPP)
  /// Address in use, or reserved. The corresponding C constant is `EADDRINUSE`.
  public static let addressInUse = Errno(rawValue: EADDRINUSE)
  /// Timed out. The corresponding C constant is `ETIMEDOUT`.
  public static let timedOut = Errno(rawValue: ETIMEDOUT)

  private static let names: [Int32: String] = [
    EPERM: "EPERM", ENOENT: "ENOENT", EINTR: "EINTR", EIO: "EIO", E2BIG: "E2BIG", EBADF: "EBADF",
    EAGAIN: "EAGAIN", ENOMEM: "ENOMEM", EACCES: "EACCES", EFAULT: "EFAULT", EBUSY: "EBUSY",
    EEXIST: "EEXIST", ENODEV: "ENODEV", ENXIO: "ENXIO", ENOTDIR: "ENOTDIR", EISDIR: "EISDIR",
    EINVAL: "EINVAL", EMFILE: "EMFILE", ENFILE: "ENFILE", ENOTTY: "ENOTTY", ENOSPC: "ENOSPC",
    ESPIPE: "ESPIPE", EROFS: "EROFS", ERANGE: "ERANGE", ENOSYS: "ENOSYS", EOVERFLOW: "EOVERFLOW",
    EMSGSIZE: "EMSGSIZE", EOPNOTSUPP: "EOPNOTSUPP", EADDRINUSE: "EADDRINUSE",
    ETIMEDOUT: "ETIMEDOUT", ESRCH: "ESRCH", ELOOP: "ELOOP", ENAMETOOLONG: "ENAMETOOLONG",
  ]
}
