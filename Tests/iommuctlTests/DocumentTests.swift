import CapturedTrees
import IOMMU
import Testing
import iommuctl

/// The documents have the keys that others rely on, whatever the tree is like.
@Suite struct DocumentTests {
  static let trees = ["vtd-laptop", "smmuv3-server", "type1-only", "no-iommu", "vm-without-iommu", "corrupt"]

  private func document(_ line: String, _ tree: CapturedTree) throws -> Document {
    let written = try WrittenTree(tree)
    let result = Invocation("--json --root \(written.root) \(line)")
    let document = try result.document
    #expect(document["schema"].number == 1)
    #expect(document["command"].text == line.split(separator: " ").first.map(String.init))
    return document
  }

  @Test(arguments: trees) func list(_ name: String) throws {
    let document = try document("list", .fixture(name))
    #expect(!document["devices"].list.isEmpty)
    #expect(document.keys.contains("unread"))
    for device in document["devices"].list { check(device: device) }
  }

  private func check(device: Document) {
    #expect(
      device.keys.isSuperset(of: [
        "address", "vendor", "device", "name", "driver", "group", "iommu", "cdev", "numa_node", "status",
        "reason",
      ]))
    #expect(device["address"].text.flatMap { PCIAddress($0) } != nil)
    for key in ["vendor", "device"] { #expect(device[key].isNull || device[key].address != nil) }
    for key in ["name", "driver", "iommu", "cdev", "reason"] {
      #expect(device[key].isNull || device[key].text != nil)
    }
    for key in ["group", "numa_node"] { #expect(device[key].isNull || device[key].number != nil) }
    #expect(["ready", "bindable", "blocked", "unknown"].contains(device["status"].text))
  }

  @Test(arguments: trees) func groups(_ name: String) throws {
    let document = try document("groups", .fixture(name))
    for group in document["groups"].list {
      #expect(group.keys.isSuperset(of: ["id", "type", "iommu", "devices", "viable", "culprit"]))
      #expect(group["id"].number != nil)
      #expect(group["devices"].texts.count == group["devices"].list.count)
      #expect(group["viable"].isNull || group["viable"].flag != nil)
      if group["viable"].flag == true { #expect(group["culprit"].isNull) }
    }
  }

  @Test(arguments: trees) func showAndDoctorOfEveryDevice(_ name: String) throws {
    let written = try WrittenTree(.fixture(name))
    for device in try Invocation("--json --root \(written.root) list").document["devices"].list {
      let address = try #require(device["address"].text)
      let shown = try Invocation("--json --root \(written.root) show \(address)").document
      check(device: shown)
      #expect(shown["interface"].keys == ["chosen", "reason"])
      #expect(shown["interface"]["reason"].text != nil)
      #expect(shown["translation"]["candidates"].list.map { $0["name"].text } == ["kernel", "process"])
      // Behind an SMMUv3, and where nobody knows behind what, only opening the device tells; behind a VT-d its registers, if they
      // are there.
      let possible = shown["translation"]["candidates"][1]["possible"].flag
      let services = shown["translation"]["ats"]
      #expect(services.isNull == (possible == false || shown["iommu"].isNull))
      #expect(services.isNull || services.keys == ["enabled", "reason"])
      if let unit = shown["iommu"].text, !unit.hasPrefix("dmar") {
        #expect(possible == (unit.hasPrefix("smmu3") ? nil : false))
      } else {
        #expect(possible != true)
      }
      #expect(shown["usable"].isNull)
      for region in shown["reserved"].list {
        #expect(region["start"].address != nil && region["end"].address != nil && region["type"].text != nil)
      }
      let found = try Invocation("--json --root \(written.root) doctor \(address)").document
      check(doctor: found)
    }
  }

  @Test(arguments: trees) func doctorOfTheMachine(_ name: String) throws {
    check(doctor: try document("doctor", .fixture(name)))
  }

  private func check(doctor: Document) {
    let verdicts: Set<String?> = ["ok", "warn", "fail", "unknown", "not-applicable"]
    #expect(verdicts.contains(doctor["verdict"].text))
    let ids = [
      "iommu-enabled", "interrupt-remapping", "group-viable", "driver", "permission", "memlock", "iommufd",
      "cdev", "type1-entries", "reserved-regions", "modules",
    ]
    #expect(doctor["checks"].list.map { $0["id"].text } == ids)
    for check in doctor["checks"].list {
      #expect(check.keys == ["id", "verdict", "evidence", "meaning", "remedy", "culprit"])
      #expect(verdicts.contains(check["verdict"].text))
      #expect(check["meaning"].text?.isEmpty == false)
      for evidence in check["evidence"].list { #expect(evidence.keys == ["path", "value"]) }
    }
  }

  @Test func doctorNamesTheCulprit() throws {
    let document = try document("doctor 1:0.0", .small)
    let check = try #require(document["checks"].list.first { $0["id"].text == "group-viable" })
    #expect(check["verdict"].text == "fail")
    #expect(check["culprit"].text == "0000:01:00.1 (examplehc)")
    #expect(check["remedy"].text != nil)
  }

  @Test func plansOfACapturedTree() throws {
    let document = try document("bind 2:0.0 --dry-run", .small)
    #expect(document["done"].flag == false)
    #expect(
      document["writes"].list.map { $0["path"].text } == [
        "/sys/bus/pci/drivers/example/unbind", "/sys/bus/pci/devices/0000:02:00.0/driver_override",
        "/sys/bus/pci/drivers_probe",
      ])
    #expect(document["writes"][1]["value"].text == "vfio-pci")
  }

  @Test func bindOnTheSimulatedMachine() throws {
    let document = try Invocation("--json --simulated bind 0:3.0").document
    #expect(document["done"].flag == true)
    #expect(document["writes"].list.count == 3)
    let again = try Invocation("--json --simulated bind 0:2.0").document
    #expect(again["done"].flag == true && again["writes"].list.isEmpty)
    let restored = try Invocation("--json --simulated restore 0:2.0 --dry-run").document
    #expect(restored["done"].flag == false && !restored["warnings"].list.isEmpty)
  }

  @Test func whatCannotBeReadIsListed() throws {
    let document = try document("list", .fixture("corrupt"))
    #expect(!document["unread"].texts.isEmpty)
  }
}
