// swift-tools-version: 6.2
import PackageDescription

let package = Package(
  name: "swift-iommu",
  products: [
    .library(name: "IOMMU", targets: ["IOMMU"]),
    .library(name: "IOMMUSimulation", targets: ["IOMMUSimulation"]),
    .executable(name: "iommuctl", targets: ["iommuctl"]),
  ],
  traits: [
    .default(enabledTraits: ["PCINames"]),
    .trait(name: "PCINames", description: "Device names from pci.ids, by libpci (GPL)"),
  ],
  dependencies: [
    // Only iommuctl uses it; a program that depends on the libraries does not build it.
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.5.0")
  ],
  targets: [
    .target(name: "CIOMMU", path: "CShims", exclude: ["pci"]),
    .systemLibrary(
      name: "CPCI", path: "CShims/pci", pkgConfig: "libpci", providers: [.apt(["libpci-dev"])]),
    .target(name: "AddressSpace", dependencies: ["CIOMMU"]),
    .target(name: "PageTables", dependencies: ["AddressSpace", "CIOMMU"]),
    .target(
      name: "IOMMU",
      dependencies: [
        "AddressSpace", "CIOMMU", "PageTables", .target(name: "CPCI", condition: .when(traits: ["PCINames"])),
      ]),
    .target(name: "IOMMUSimulation", dependencies: ["AddressSpace", "CIOMMU", "IOMMU"]),
    .executableTarget(
      name: "iommuctl",
      dependencies: [
        "AddressSpace", "CIOMMU", "IOMMU", "IOMMUSimulation",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ]),

    // Tests: what runs in the guests as well as under `swift test` is a library of plain functions.
    .target(name: "NVMeDriver", dependencies: ["IOMMU"], path: "Tests/NVMeDriver"),
    .target(
      name: "ConformanceSuite",
      dependencies: [
        "AddressSpace", "AddressSpaceModels", "CIOMMU", "IOMMU", "IOMMUSimulation", "NVMeDriver", "PageTables",
      ],
      path: "Tests/ConformanceSuite"),
    .executableTarget(
      name: "conformance", dependencies: ["ConformanceSuite", "IOMMU", "IOMMUSimulation"],
      path: "Tests/conformance"),
    .target(name: "CapturedTrees", path: "Tests/CapturedTrees"),
    .target(name: "RawIoctls", dependencies: ["CIOMMU"], path: "Tests/Bench/RawIoctls"),
    .executableTarget(
      name: "measure",
      dependencies: [
        "AddressSpace", "CapturedTrees", "CIOMMU", "IOMMU", "IOMMUSimulation", "PageTables", "RawIoctls",
      ],
      path: "Tests/Bench/measure"),
    .testTarget(name: "CShimsTests", dependencies: ["CIOMMU"]),
    .target(name: "AddressSpaceModels", dependencies: ["AddressSpace"], path: "Tests/AddressSpaceModels"),
    .testTarget(name: "AddressSpaceTests", dependencies: ["AddressSpace", "AddressSpaceModels", "CIOMMU"]),
    .testTarget(name: "PageTablesTests", dependencies: ["AddressSpace", "AddressSpaceModels", "PageTables"]),
    .testTarget(
      name: "IOMMUTests",
      dependencies: [
        "AddressSpace", "AddressSpaceModels", "CapturedTrees", "CIOMMU", "IOMMU", "IOMMUSimulation", "PageTables",
      ],
      exclude: ["Fixtures"]),
    .testTarget(
      name: "IOMMUSimulationTests",
      dependencies: ["AddressSpace", "CIOMMU", "ConformanceSuite", "IOMMU", "IOMMUSimulation"]),
    .testTarget(
      name: "iommuctlTests",
      dependencies: ["CapturedTrees", "iommuctl", "IOMMU", "IOMMUSimulation"], exclude: ["Golden"]),
  ],
  swiftLanguageModes: [.v6])

// Programs that run for long. Tests/Stress/check and Tests/Soak/check alone build them, with sanitizers.
if Context.environment["SWIFT_IOMMU_SOAK"] != nil {
  package.targets += [
    .target(name: "StressRuntime", path: "Tests/Stress/runtime"),
    .executableTarget(
      name: "stress",
      dependencies: [
        "AddressSpace", "AddressSpaceModels", "CIOMMU", "IOMMU", "IOMMUSimulation", "PageTables", "StressRuntime",
      ],
      path: "Tests/Stress/stress"),
    .executableTarget(name: "model", dependencies: ["AddressSpaceModels"], path: "Tests/Soak/model"),
    // With the sources of the trace files' parser and of the tests' table reader, since a program cannot import another; so has the
    // stress program those of the tests with threads in one table.
    .executableTarget(
      name: "fuzz", dependencies: ["AddressSpace", "AddressSpaceModels", "IOMMU"], path: "Tests/Soak/fuzz"),
  ]
}

for target in package.targets
where target.type != .system && !["CIOMMU", "RawIoctls", "StressRuntime"].contains(target.name) {
  target.swiftSettings = [
    .strictMemorySafety(),  // SE-0458
    .enableUpcomingFeature("ExistentialAny"),  // SE-0335
    .enableUpcomingFeature("InternalImportsByDefault"),  // SE-0409
    .enableUpcomingFeature("MemberImportVisibility"),  // SE-0444
    .enableExperimentalFeature("Lifetimes"),  // span properties
  ]
  // Warnings are errors in CI; not for those who depend on this package.
  if Context.environment["CI"] != nil { target.swiftSettings! += [.treatAllWarnings(as: .error)] }
}
