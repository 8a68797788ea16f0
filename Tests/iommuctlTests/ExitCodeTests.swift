import CapturedTrees
import Foundation
import IOMMU
import IOMMUSimulation
import Testing
import iommuctl

@Suite struct ExitCodeTests {
  /// A command line, the machine that it runs on, and what must come of it.
  struct Row: CustomTestStringConvertible, Sendable {
    let line: String
    var simulation = Simulation.standard
    let status: Outcome
    let code: String
    var errno: String?
    var testDescription: String { "\(line) → \(code)" }
  }

  static let rows: [Row] = [
    Row(line: "show 9:0.0", status: .failed, code: "no-such-device", errno: "ENOENT"),
    Row(line: "doctor 9:0.0", status: .failed, code: "no-such-device", errno: "ENOENT"),
    Row(line: "bind 9:0.0", status: .failed, code: "no-such-device", errno: "ENOENT"),
    Row(line: "selftest 9:0.0", status: .failed, code: "no-such-device", errno: "ENOENT"),
    Row(line: "selftest 0:3.0", status: .refused, code: "not-bound"),
    Row(line: "demo 0:3.0", status: .unsupported, code: "not-supported"),
    Row(
      line: "demo", simulation: .changed { ($0.user, $0.groups) = (1000, [1000]) }, status: .permission,
      code: "permission", errno: "EACCES"),
    Row(
      line: "demo --interface type1",
      simulation: .changed { ($0.user, $0.groups) = (1000, [1000]) },
      status: .permission, code: "permission", errno: "EACCES"),
    Row(
      line: "demo --interface iommufd",
      simulation: .changed { ($0.interfaces, $0.hasDeviceNodes) = ([.type1], false) }, status: .unsupported,
      code: "not-supported"),
    Row(
      line: "demo", simulation: .changed { $0.isolatesInterrupts = false }, status: .refused,
      code: "unsafe-interrupts", errno: "EPERM"),
    Row(
      line: "selftest 0:2.0", simulation: .changed { $0.iommu = nil }, status: .unsupported, code: "no-iommu"),
    Row(
      line: "bind 0:3.0", simulation: .changed { $0.iommu = nil }, status: .unsupported, code: "no-iommu"),
    Row(
      line: "demo",
      simulation: .changed {
        $0.devices[1].group = 0; $0.devices[0].group = 0
      },
      status: .refused, code: "group-not-viable"),
  ]

  @Test(arguments: rows)
  func errorsOfTheSimulatedMachine(_ row: Row) throws {
    let result = Invocation("--json --simulated \(row.line)", simulation: row.simulation)
    #expect(result.status == row.status, "\(result.err)")
    #expect(result.out.isEmpty)
    let document = try Document(parsing: result.err)
    #expect(document.keys == ["schema", "command", "error"])
    #expect(document["schema"].number == 1)
    #expect(document["command"].text == row.line.split(separator: " ").first.map(String.init))
    let error = document["error"]
    #expect(
      error.keys.isSuperset(of: ["code", "operation", "errno", "address", "length_bytes", "device", "remedy"])
    )
    #expect(error["code"].text == row.code)
    #expect(error["errno"].text == row.errno)
    // The same without JSON: the same code, one line, nothing on stdout but a story's beginning.
    let plain = Invocation("--simulated \(row.line)", simulation: row.simulation)
    #expect(plain.status == row.status)
    #expect(plain.err.hasPrefix("iommuctl: ") && plain.err.contains(row.code))
  }

  @Test(arguments: ["list", "groups", "doctor", "show 0:2.0"])
  func badRoot(_ line: String) throws {
    let result = Invocation("--json --root /nonexistent/tree \(line)")
    #expect(result.status == .failed)
    #expect(try result.error["code"].text == "no-such-tree")
    #expect(try result.error["errno"].text == "ENOENT")
    let empty = try WrittenTree(CapturedTree())
    let nothing = Invocation("--json --root \(empty.root) \(line)")
    #expect(nothing.status == .failed)
    #expect(try nothing.error["code"].text == "corrupt-tree")
  }

  /// A directory that this user may not read is a lack of permission, and no broken tree.
  @Test func anUnreadableRoot() throws {
    let tree = try WrittenTree(.small), system = "\(tree.root)/sys"
    try FileManager.default.setAttributes([.posixPermissions: 0], ofItemAtPath: system)
    defer { try? FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: system) }
    // Root reads it all the same.
    let isRoot = FileManager.default.isReadableFile(atPath: system)
    let result = Invocation("--json --root \(tree.root) list")
    #expect(result.status == (isRoot ? .fine : .permission))
    if !isRoot { #expect(try result.error["code"].text == "permission") }
  }

  @Test(arguments: ["demo", "selftest 1:0.0", "bind 2:0.0", "unbind 1:0.0"])
  func aCapturedTreeIsToBeLookedAt(_ line: String) throws {
    let tree = try WrittenTree(.small)
    let result = Invocation("--json --root \(tree.root) \(line)")
    #expect(result.status == .unsupported)
    #expect(try result.error["code"].text == "not-supported")
  }

  @Test func doctorFindsProblems() throws {
    let tree = try WrittenTree(.small)
    #expect(Invocation("--root \(tree.root) doctor 1:0.0").status == .refused)
    #expect(Invocation("--simulated doctor 0:2.0").status == .fine)
    #expect(Invocation("--simulated doctor", simulation: .changed { $0.iommu = nil }).status == .refused)
  }

  @Test func everyStatusHasItsNumber() {
    #expect(Outcome.fine.rawValue == 0)
    #expect(Outcome.failed.rawValue == 1)
    #expect(Outcome.usage.rawValue == 2)
    #expect(Outcome.refused.rawValue == 3)
    #expect(Outcome.permission.rawValue == 4)
    #expect(Outcome.unsupported.rawValue == 5)
  }
}
