"""Records in, the report that people read out: picture, page and summary."""

from fastervit_trt.benchmarks.report.write import DEFAULT_TITLE, ReportFiles, write_report

__all__ = ["DEFAULT_TITLE", "ReportFiles", "write_report"]
