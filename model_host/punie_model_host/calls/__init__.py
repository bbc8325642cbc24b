"""Tool calls as models write them: one small reader for each way of writing."""
