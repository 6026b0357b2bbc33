"""/v1/responses: conversations as items, kept for a while, streamed as typed events. Built on the parts of chats."""
