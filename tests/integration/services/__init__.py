"""Services against real bytes on a real socket."""
